from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from franca_fast.errors import InputError
from franca_fast.hub import download as module
from franca_fast.hub.download import download, file_sha256, forget_download, locked

DATA = bytes(range(256)) * 40
HASH = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "w.pth"


@pytest.fixture
def address(server) -> str:
    server.files["w.pth"] = DATA
    return f"{server.address}/w.pth"


def names(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} if target.parent.is_dir() else set()


def test_file_arrives_with_its_hash_beside_it(server, address: str, target: Path) -> None:
    assert download(address, target, sha256=HASH) == target
    assert target.read_bytes() == DATA
    assert target.with_name("w.pth.sha256").read_text() == f"{HASH}  w.pth\n"
    assert names(target) == {"w.pth", "w.pth.sha256"}
    download(address, target)
    assert len(server.requests) == 1  # what is there is not asked for again


def test_dropped_connection_is_resumed(server, address: str, target: Path) -> None:
    server.drop_after = [4000, 3000]
    download(address, target)
    assert target.read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=4000-", "bytes=7000-"]


def test_server_without_ranges_sends_everything_again(server, address: str, target: Path) -> None:
    server.drop_after, server.ranges = [4000], False
    download(address, target)
    assert target.read_bytes() == DATA


def test_file_that_changed_meanwhile_is_fetched_anew(server, address: str, target: Path) -> None:
    server.drop_after = [4000] + [0] * module._ATTEMPTS
    with pytest.raises(InputError, match="4000 bytes are kept"):
        download(address, target)
    server.drop_after, server.etag = [], '"2"'
    server.files["w.pth"] = DATA[::-1]
    download(address, target)
    assert target.read_bytes() == DATA[::-1]


def test_partial_file_longer_than_what_is_there_now(server, address: str, target: Path) -> None:
    server.drop_after = [4000] + [0] * module._ATTEMPTS
    with pytest.raises(InputError):
        download(address, target)
    server.drop_after, server.files["w.pth"] = [], DATA[:100]
    download(address, target)
    assert target.read_bytes() == DATA[:100]


def test_interrupt_leaves_what_arrived(
    server, address: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1000)
    real = module._length

    class Interrupting:
        def __init__(self, part: Path) -> None:
            self.part = part

        def __enter__(self):
            return self.advance

        def __exit__(self, *error: object) -> None:
            pass

        def advance(self, n_bytes: int) -> None:
            if real(self.part) >= 3000:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_progress", lambda part, start, size: Interrupting(part))
        with pytest.raises(KeyboardInterrupt):
            download(address, target)
    assert target.with_name("w.pth.part").read_bytes() == DATA[:3000]
    assert not target.exists()
    download(address, target)
    assert target.read_bytes() == DATA
    assert server.requests[-1] == ("w.pth", "bytes=3000-")


def test_partial_file_of_another_address_is_not_continued(
    server, address: str, target: Path
) -> None:
    server.files["other.pth"] = DATA[::-1]
    server.drop_after = [4000] + [0] * module._ATTEMPTS
    with pytest.raises(InputError):
        download(f"{server.address}/other.pth", target)
    download(address, target)
    assert target.read_bytes() == DATA


def test_server_that_promises_more_than_it_sends(server, address: str, target: Path) -> None:
    server.length_error, server.ranges = 10, False
    with pytest.raises(InputError, match="ended after 10240 of 10250 bytes"):
        download(address, target)
    assert not target.exists()


def test_absent_file_is_said_at_once(server, address: str, target: Path) -> None:
    with pytest.raises(InputError, match=r"no file at .*nothing\.pth' \(HTTP 404\)"):
        download(f"{server.address}/nothing.pth", target)
    assert len(server.requests) == 1
    assert not target.exists()


def test_overloaded_server_is_asked_again_and_a_refusal_is_not(
    server, address: str, target: Path
) -> None:
    server.statuses = [503, 429, 200]
    download(address, target)
    server.statuses = [403]
    with pytest.raises(InputError, match=r"refused \(HTTP 403\)"):
        download(address, target.with_name("again.pth"))


def test_no_connection_is_said_at_once(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no connection to 'http://127\.0\.0\.1:1/w\.pth'"):
        download("http://127.0.0.1:1/w.pth", target)
    assert "again" not in capsys.readouterr().err
    assert names(target) == set()


def test_wrong_hash_or_content_is_deleted(server, address: str, target: Path) -> None:
    with pytest.raises(InputError, match=f"wrong or damaged.*SHA-256 is {HASH} instead of 00"):
        download(address, target, sha256="00")
    assert names(target) == set()

    def refuse(path: Path) -> None:
        assert path.read_bytes() == DATA
        raise InputError("no weights")

    with pytest.raises(InputError, match="wrong or damaged file, which was deleted: no weights"):
        download(address, target, check=refuse)
    assert names(target) == set()


def test_full_disk_is_noticed_before(
    server, address: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        InputError, match=r"10240 bytes are to come and 100 are free.*FRANCA_FAST_C"
    ):
        download(address, target)
    assert not target.exists()


def test_disk_that_fills_up_is_one_clear_error(server, address: str, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("w.pth.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"no space in .*No space left on device"):
        download(address, target)
    assert len(server.requests) == 1
    assert not target.exists()


def test_only_one_of_several_downloads(server, address: str, target: Path) -> None:
    def fetch() -> None:
        with locked(target):
            download(address, target)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert file_sha256(target) == HASH


def test_progress_in_lines(
    server, address: str, target: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1024)
    download(address, target)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "downloading w.pth, 0 MB"
    assert lines[1:] == [f"w.pth: {i}0%" for i in range(1, 11)]


def test_bar_on_a_terminal(server, address: str, target: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    download(address, target)
    assert "w.pth: 100%" in capsys.readouterr().err


def test_only_what_was_downloaded_is_forgotten(server, address: str, target: Path) -> None:
    download(address, target)
    own = target.with_name("own.pth")
    own.write_bytes(DATA)
    forget_download(target)
    forget_download(own)
    assert names(target) == {"own.pth"}
