from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from franca_fast.cli.main import main
from franca_fast.cli.shards import _size
from python_tests.data.files import png, tar_bytes, write_folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", ["cat", "dog"], 5)


def test_pack_check_and_stats(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "shards")
    command = ["shards", "pack", str(photos), "--output", out, "--max-count", "4"]
    assert main(command) == 0
    assert "10 images" in capsys.readouterr().out
    assert main([*command, "--num-workers", "1"]) == 0
    assert "in 3 shards, 3 of them there already" in capsys.readouterr().out
    assert main(["shards", "check", out]) == 0
    assert "3 shards or folders, 10 good images" in capsys.readouterr().out
    assert main(["shards", "stats", out, "--colours"]) == 0
    shown = capsys.readouterr().out
    assert "classes: 2, from 5 to 5 images" in shown and "cat 5" in shown and "mean: 0." in shown


def test_a_bad_image_gives_exit_code_1(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "cat" / "0.png").write_text("text")
    assert main(["shards", "check", str(photos)]) == 1
    shown = capsys.readouterr().out
    assert "cat/0.png: not an image" in shown and "skipped 1: not an image" in shown


def test_a_list_of_files(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text(f"{photos}/cat/0.png\n\n{photos}/dog/1.png\n")
    options = ["--list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")]
    assert main(["shards", "pack", *options, "--no-shuffle"]) == 0
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pack", "--output", "x"], "nothing to pack"),
        (["pack", "gone", "--output", "x"], "'gone': no such file"),
        (["pack", "gone", "--output", "x", "--max-size", "1Q"], "1Q; accepted: a size"),
        (["pack", "gone", "--output", "x", "--list", "gone.txt"], "gone.txt"),
        (["chek", "x"], "chek"),
        (["check"], "SOURCE"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shards", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_sizes_as_people_write_them() -> None:
    assert [_size(text) for text in ("1G", "500M", "1.5k", "7", "2GiB", "3MB")] == [
        1 << 30,
        500 << 20,
        1536,
        7,
        2 << 30,
        3 << 20,
    ]


@pytest.mark.parametrize(
    "members",
    [
        ["22.01.png", "22.02.png"],
        ["a.png", "a.png"],
        ["._a.png", "a.png"],
        ["a.png", "b.png", "a.cls"],
    ],
)
def test_a_check_of_what_is_left_out_ends_with_1(
    tmp_path: Path, members: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = [(name, png(i) if name.endswith("png") else b"1") for i, name in enumerate(members)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(data))
    assert main(["shards", "check", str(tmp_path / "s.tar")]) == 1
    shown = capsys.readouterr().out
    assert "images found = " in shown and "1: " in shown


def test_a_pack_in_which_all_was_skipped_ends_with_1(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in photos.rglob("*.png"):
        file.write_text("text")
    assert main(["shards", "pack", str(photos), "--output", str(tmp_path / "out")]) == 1
    assert "nothing is packed" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "encoded",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.encode("utf-8-sig").replace(b"\n", b"  \n"),
    ],
)
def test_lists_of_any_system_are_read(photos: Path, tmp_path: Path, encoded: Any) -> None:
    (photos / "cat" / "blank .png ").write_bytes(b"")  # no image by its name, but there
    (tmp_path / "list.txt").write_bytes(encoded(f"{photos}/cat/0.png\n{photos}/dog/1.png\n"))
    options = ["--list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")]
    assert main(["shards", "pack", *options]) == 0


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_a_list_that_is_no_text_is_refused(
    photos: Path, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_bytes(f"{photos}/cat/0.png\n".encode(encoding))
    options = ["--list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "out")]
    assert main(["shards", "pack", *options]) == 2
    assert f"--list: '{tmp_path}/list.txt', no text of UTF-8 or UTF-16" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.txt", ".", "x" * 300])
def test_a_list_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    assert main(["shards", "pack", "--list", str(path), "--output", str(tmp_path / "out")]) == 2
    assert f"--list: '{path}', " in capsys.readouterr().err


def test_names_that_the_terminal_cannot_write_are_spelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"caf\xe9\n.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_text("text")
    (tmp_path / "good.png").write_bytes(png(0))
    assert main(["shards", "check", str(tmp_path)]) == 1
    assert "/caf\\xe9\\x0a.png: not an image" in capsys.readouterr().out
