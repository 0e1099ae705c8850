from __future__ import annotations

import errno
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from franca_fast.errors import InputError, OutputError
from franca_fast.files import (
    atomic_path,
    check_file,
    check_folder,
    folder_beside,
    save_or_keep,
    torch_file,
    write_json,
    write_text,
)

Check = Callable[..., Path]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with things in the way."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    Path("to_file").symlink_to("file/x")
    Path("to_nothing").symlink_to("nothing")
    os.mkfifo("pipe")
    return folder


def refused(check: Check, path: str, **options: Any) -> str:
    """The complaint, which names the path as given, and what is accepted; nothing is changed."""
    before = sorted(os.listdir("."))
    with pytest.raises(InputError) as caught:
        check(path, **options)
    message = str(caught.value)
    assert message.startswith(f"output: '{path}'")
    assert "; accepted: " in message
    assert sorted(os.listdir(".")) == before
    return message


def test_file_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("complete")
        assert not target.exists()
    assert target.read_text() == "complete"
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_json(tmp_path / "atomic", [1])
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "a.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_names_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.npz"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"


def test_file_in_use_is_refused_unless_asked(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert check_file(file) == file
    file.touch()
    with pytest.raises(InputError, match="exists"):
        check_file(file)
    assert check_file(file, overwrite=True) == file
    with pytest.raises(InputError, match="a folder; accepted: a file"):
        check_file(tmp_path, overwrite=True)


def test_folder_in_use_is_refused_unless_asked(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert check_folder(folder) == folder
    assert not folder.exists()
    folder.mkdir()
    assert check_folder(folder) == folder
    (folder / "file").touch()
    with pytest.raises(InputError, match="in use"):
        check_folder(folder)
    assert check_folder(folder, overwrite=True) == folder
    with pytest.raises(InputError, match="a file; accepted: a folder"):
        check_folder(folder / "file", overwrite=True)


@pytest.mark.parametrize("check", [check_file, check_folder])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file/out", "Not a directory ('file')"),
        ("file/a/b/out", "Not a directory ('file')"),
        ("./file/out", "Not a directory ('file')"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/out", "Too many levels of symbolic links"),
        ("to_nothing/out", "Not a directory ('to_nothing')"),
        ("n" * 256, "File name too long"),
        ("a/" + "ü" * 128 + "/out", "File name too long"),
        ("a/" + "n" * 256, "File name too long"),
        ("a/" * 3000, "File name too long"),
        ("a\0b", "null character"),
        ("", "no name"),
    ],
)
def test_a_path_that_cannot_be_made_is_refused(
    here: Path, check: Check, path: str, reason: str
) -> None:
    assert reason in refused(check, path, overwrite=True)


@pytest.mark.parametrize("path", ["pipe", "/dev/null", "/dev/full"])
def test_a_device_or_a_pipe_is_no_output(here: Path, path: str) -> None:
    assert "a device, a pipe" in refused(check_file, path, overwrite=True)
    with pytest.raises(OSError, match="a device, a pipe"):
        write_text(path, "x")
    assert not Path(path).is_file()


def test_a_link_whose_file_cannot_be_made_is_refused(here: Path) -> None:
    assert "Not a directory" in refused(check_file, "to_file")
    assert check_file("to_nothing") == Path("to_nothing")


@pytest.mark.parametrize("check", [check_file, check_folder])
@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("os.fsync", errno.ENOSPC),
        ("os.fsync", errno.EDQUOT),
        ("tempfile.TemporaryFile", errno.EROFS),
        ("tempfile.TemporaryFile", errno.EACCES),
        ("os.stat", errno.ESTALE),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    here: Path, check: Check, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(call, raising(OSError(number, os.strerror(number), "/else/.temporary-x")))
        with pytest.raises(OutputError) as caught:
            check("a/out")
    assert str(caught.value).startswith(f"output: 'a/out', {os.strerror(number)}")
    assert caught.value.errno == number
    assert not Path("a").exists()


def test_an_interrupted_check_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(here.iterdir())
    monkeypatch.setattr("os.fsync", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        check_file("out")
    # Where the system knows no files without a name, as some network file systems.
    monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
    with pytest.raises(KeyboardInterrupt):
        check_file("out")
    assert sorted(here.iterdir()) == before


def test_a_file_that_cannot_be_replaced_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def immutable(path: Any, *rest: int, **options: Any) -> int:
        if os.fspath(path) == "file":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "file")
        return opened(path, *rest, **options)

    opened = os.open
    monkeypatch.setattr("os.open", immutable)
    assert "Operation not permitted" in refused(check_file, "file", overwrite=True)
    with pytest.raises(InputError, match=r"output: '\./file', Operation not permitted"):
        check_folder(".", overwrite=True, files=["other", "file"])


def test_space_is_compared_with_what_is_needed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {"f_frsize": 1000, "f_bavail": 2, "f_bfree": 3, "f_blocks": 9}
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(**blocks))
    for check in (check_file, check_folder):
        assert "2001 bytes where 2000 are free" in refused(check, "out", n_bytes=2001)
        assert check("out", n_bytes=2000) == Path("out")
    blocks.update(f_bavail=0, f_bfree=0, f_blocks=0)  # some file systems do not know
    assert check_file("out", n_bytes=2001) == Path("out")


def test_what_a_link_leads_to_is_written(here: Path) -> None:
    Path("new").symlink_to("there")
    for link, file in (("new", "there"), ("new", "there")):
        write_text(link, "text")
        assert Path(link).is_symlink()
        assert Path(file).read_text() == "text"


@pytest.mark.parametrize("path", ["file/out.npz", "file/a/out.npz", "to_nothing/out.npz"])
def test_an_error_of_a_folder_names_both(here: Path, path: str) -> None:
    with pytest.raises(NotADirectoryError) as caught, atomic_path(path):
        pass
    assert caught.value.filename == path
    assert caught.value.strerror == f"Not a directory ('{path.split('/')[0]}')"


@pytest.mark.parametrize("make", [atomic_path, folder_beside])
def test_no_error_names_the_temporary(
    here: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    trouble = [
        lambda file: OSError(errno.EIO, f"cannot write {file}", str(file)),
        lambda file: OSError(errno.EIO, f"cannot write '{file.name}'"),
        lambda file: OSError(errno.EXDEV, "Invalid link", str(file), None, str(file)),
        lambda file: OSError(f"Failed to open '{file.absolute()}' for writing"),
    ]
    for error in trouble:
        with pytest.raises(OSError) as caught, make("a.npz") as file:
            raise error(file)
        assert str(caught.value).count("a.npz") >= 1
        assert file.name not in str(caught.value)
        assert caught.value.filename == "a.npz"
    for call in ("tempfile.mkstemp", "tempfile.mkdtemp"):
        monkeypatch.setattr(call, raising(OSError(errno.EACCES, "denied", "/x/.a-123.npz")))
    with pytest.raises(PermissionError) as caught, make("a.npz"):
        pass
    assert caught.value.filename == "a.npz"


def test_an_error_in_words_alone_gets_its_number(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError) as caught, atomic_path("a"):
        raise OSError("Error while serializing: I/O error: full (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "a")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError) as caught, atomic_path("a"):
        raise OSError("unexpected pos 64 vs 0")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "a")


def test_any_name_that_the_disk_takes_can_be_written(here: Path) -> None:
    draw = random.Random(0)
    letters = [*"ab .-", "ü", "日", "\U0001f600", "\n", "\udce9", "$", "'"]
    for length in (1, 40, 100, 245, 250, 254, 255) * 8:
        name = draw.choice(letters[:2])
        while len(os.fsencode(name)) < length:
            name += draw.choice(letters)
        while len(os.fsencode(name)) > length:
            name = name[:-1]
        before = {*os.listdir(".")}
        write_text(check_file(name, overwrite=True), name.encode("utf-8", "replace").decode())
        assert {*os.listdir(".")} - before <= {name}
        assert Path(name).is_file()


def test_torch_says_that_the_disk_is_full() -> None:
    with pytest.raises(OSError) as caught, torch_file("/dev/full") as file:
        torch.save({"weights": torch.zeros(9)}, file)
    assert caught.value.errno == errno.ENOSPC


def failing_at(path: str) -> Callable[[Path], None]:
    """Writes anywhere but there."""

    def write(file: Path) -> None:
        if str(file) == path:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        write_text(file, "result")

    return write


def test_a_result_that_cannot_be_written_is_kept(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(OutputError) as caught:
        save_or_keep("out.json", failing_at("out.json"))
    kept = caught.value.kept
    assert kept is not None and kept.read_text() == "result"
    assert kept.parent.parent == home and kept.name == "out.json"
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    start = "No space left on device: out.json; what was computed is kept as"
    assert str(caught.value) == f"{start} '{kept}'"
    assert isinstance(caught.value, OSError) and caught.value.errno == errno.ENOSPC


def test_a_result_is_kept_where_there_is_room(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here / "file"))  # no folder
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OutputError) as caught:
        save_or_keep("out.json", failing_at("out.json"))
    assert caught.value.kept is not None and caught.value.kept.parent.parent == tmp_path


def test_a_file_that_came_meanwhile_stays_and_the_result_is_kept(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OutputError, match="'file' exists") as caught:
        save_or_keep("file", lambda file: write_text(check_file(file), "result"))
    assert caught.value.kept is not None and caught.value.kept.read_text() == "result"
    assert Path("file").read_text() == "mine"


def test_a_result_without_any_place_is_said_to_be_lost(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"is lost, nor could it be kept in {tmp_path}") as caught:
        save_or_keep("out.json", full)
    assert caught.value.kept is None
    assert sorted(tmp_path.rglob("*")) == before
