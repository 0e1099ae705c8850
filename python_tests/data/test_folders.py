from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.data.folders import list_folder
from franca_fast.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_every_file_is_an_image_a_shard_left_out_or_another(tmp_path: Path) -> None:
    names = ["a.PNG", "b/c.jpeg", ".d.png", "b/._c.jpeg", ".e/f.png", ".e/g.txt", "h.tar.gz"]
    found = list_folder(str(touch(tmp_path, *names, "notes.txt", "README", ".hidden.txt")))
    assert found.images == ["a.PNG", "b/c.jpeg"]
    assert found.shards == ["h.tar.gz"]
    hidden = found.left_out["hidden file"]
    assert hidden.total == 3 and set(hidden.names) == {".d.png", "b/._c.jpeg", ".e/f.png"}
    assert found.others == {".txt": 2, "": 1}


def test_many_hidden_files_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    hidden = list_folder(str(touch(tmp_path, *(f"._{i}.png" for i in range(50))))).left_out
    assert hidden["hidden file"].total == 50 and len(hidden["hidden file"].names) == 20


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.zip", "b.zip", "c.txt"], "it holds 2 .zip, 1 .txt"),
        (["LICENSE"], "it holds 1 without a suffix"),
        (["._a.png"], "it holds 1 hidden images"),
        ([], "it is empty"),
    ],
)
def test_what_else_there_is_can_be_said(tmp_path: Path, names: list[str], words: str) -> None:
    assert list_folder(str(touch(tmp_path, *names))).others_in_words() == words


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.png")
    (tmp_path / "real" / "back").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "broken.png").symlink_to(tmp_path / "absent")
    assert list_folder(str(tmp_path)).images == ["again/a.png", "broken.png", "real/a.png"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent', No such file"):
        list_folder(str(tmp_path / "absent"))
