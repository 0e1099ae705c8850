from __future__ import annotations

import errno
from pathlib import Path

import pytest

from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_file, check_folder, write_json


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
