from __future__ import annotations

import builtins
import errno
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from franca_fast.paths import (
    check_place,
    check_replaceable,
    longest_name,
    shortened,
    why_unreadable,
)


def test_a_name_is_cut_between_characters() -> None:
    draw = random.Random(0)
    for _ in range(300):
        name = "".join(draw.choices("aü日\U0001f600\udce9", k=draw.randrange(200)))
        n_bytes = draw.randrange(300)
        cut = shortened(name, n_bytes)
        assert name.startswith(cut)
        assert len(os.fsencode(cut)) <= n_bytes
        assert cut == name or len(os.fsencode(name[: len(cut) + 1])) > n_bytes


def test_longest_name_is_that_of_the_disk(tmp_path: Path, monkeypatch) -> None:
    assert longest_name(tmp_path / "missing" / "too") == 255
    for limit, known in ((143, 143), (1530, 255)):  # of an encrypted folder, of exFAT in UTF-8
        monkeypatch.setattr("os.pathconf", lambda path, name, limit=limit: limit)
        assert longest_name(tmp_path) == known


def test_the_nearest_folder_is_tried(tmp_path: Path) -> None:
    assert check_place(tmp_path) == tmp_path
    assert check_place(tmp_path / "a" / "b", "c") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_another_user_s_file_in_a_sticky_folder(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 12345)
    check_replaceable(file, file.stat())
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match="another user's file"):
        check_replaceable(file, file.stat())


@pytest.mark.parametrize(("number", "refused"), [(errno.EPERM, True), (errno.EACCES, False)])
def test_permissions_of_a_file_do_not_keep_it(
    tmp_path: Path, monkeypatch, number: int, refused: bool
) -> None:
    file = tmp_path / "file"
    file.touch()

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.open", fail)
    if refused:
        with pytest.raises(PermissionError):
            check_replaceable(file, file.stat())
    else:
        check_replaceable(file, file.stat())


def test_a_file_that_something_is_mounted_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with pytest.raises(OSError) as caught:
        check_replaceable(tmp_path, tmp_path.stat())
    assert caught.value.errno == errno.EBUSY


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _link(path: Path) -> None:
    path.symlink_to("nothing")


def _socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.touch, ""),
        (Path.mkdir, ""),
        (lambda path: None, "no such file or folder"),
        (_loop, "too many levels of symbolic links"),
        (_link, "a link to what is missing"),
        (os.mkfifo, "a pipe, no file"),
        (_socket, "a socket, no file"),
    ],
)
def test_what_is_there_but_unreadable_is_not_missing(
    tmp_path: Path, make: Callable[[Path], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("name"))
    assert why_unreadable("name") == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 300, "file name too long"),
        ("file/below", "not a directory"),
        ("zero\0", "no name of a file"),
        ("/dev/null", "a device, no file"),
    ],
)
def test_names_that_cannot_be_read(
    tmp_path: Path, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert why_unreadable(name) == reason


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_the_system_says_why_a_file_is_not_opened(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), path)

    (tmp_path / "file").touch()
    monkeypatch.setattr(builtins, "open", refuse)
    reason = why_unreadable(tmp_path / "file")
    monkeypatch.undo()
    assert reason == os.strerror(number).lower()
