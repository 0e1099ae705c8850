"""The folder of a session on a GPU: whose it is, and what happens when it cannot be used."""

from __future__ import annotations

import errno
import os
import struct
import zipfile

import pytest

import bench.gpu.__main__ as program
from bench.gpu import record, report
from bench.gpu.folder import taken
from bench.gpu.runner import Session
from python_tests.bench.test_gpu_session import is_over, logs, python, run, states, until


def refused(monkeypatch, capsys, out, *arguments):
    """What is said when nothing runs."""
    assert run(monkeypatch, "--part=facts", "--device=cpu", "--out", out, *arguments) == 2
    said = capsys.readouterr().out
    assert said.startswith(f"python -m bench.gpu: --out {out} ") and said.count("\n") == 1
    return said


def test_two_sessions_do_not_share_a_folder(monkeypatch, capsys, tmp_path):
    with taken(tmp_path, "cpu") as scratch:
        assert "in use" in refused(monkeypatch, capsys, tmp_path)
        assert scratch.exists()
    assert record.read(tmp_path) == []
    (tmp_path / ".session-killed").mkdir()
    with taken(tmp_path, "cpu") as scratch:  # the next one
        assert [*tmp_path.glob(".*")] == [scratch]
    assert [file.name for file in tmp_path.iterdir()] == [record.ROWS]


def test_a_dry_run_leaves_the_figures_of_a_gpu_alone(monkeypatch, capsys, tmp_path):
    record.append(tmp_path, {"part": record.SESSION, "device": "cuda"})
    record.append(tmp_path, {"part": "facts", "fact": "name", "value": "a card"})
    before = (tmp_path / record.ROWS).read_bytes()
    said = refused(monkeypatch, capsys, tmp_path)
    assert "--device cuda" in said and "--device cpu" in said
    assert (tmp_path / record.ROWS).read_bytes() == before


def test_each_device_has_a_folder_of_its_own(monkeypatch, tmp_path):
    used = {}

    class Noted:
        def __init__(self, out, scratch, device, seconds):
            used[device] = out

        def run(self, stages):
            (used[max(used)] / report.TABLE).touch()
            return True

    monkeypatch.setattr(program, "OUT", {d: tmp_path / o.name for d, o in program.OUT.items()})
    monkeypatch.setattr(program, "Session", Noted)
    monkeypatch.setattr(program, "has_gpu", lambda: True)
    for device in ("cpu", "cuda"):
        assert run(monkeypatch, "--part=facts", f"--device={device}") == 0
    assert used["cpu"] != used["cuda"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_report_says_where_it_comes_from(device, tmp_path):
    session = Session(tmp_path / "out", tmp_path / "scratch", device, 60)
    assert session.run([[python("part", "")]])
    text = (tmp_path / "out" / report.TABLE).read_text()
    assert text.startswith("# A dry run on the CPU" if device == "cpu" else "# A session on a GPU")


def damaged(how):
    """Changes an archive with one file."""

    def damage(path):
        content = bytearray(path.read_bytes())
        central = content.index(b"PK\x01\x02")
        if how == "data":  # zlib.error
            content[37:central] = b"\xff" * (central - 37)
        elif how == "method":  # a compression that zipfile lacks
            struct.pack_into("<H", content, central + 10, 97)
        elif how == "encrypted":  # RuntimeError
            content[central + 8] |= 1
            content[6] |= 1
        elif how == "short":  # EOFError
            for place in (8, central + 10):
                struct.pack_into("<H", content, place, zipfile.ZIP_STORED)
            for place in (18, central + 20):
                struct.pack_into("<II", content, place, 100_000, 100_000)
        elif how == "offset":  # OSError
            struct.pack_into("<I", content, len(content) - 6, 1 << 31)
        else:
            del content[central + 10 :]
        path.write_bytes(content)
        return bytes(content)

    return damage


@pytest.mark.parametrize("how", ["data", "method", "encrypted", "short", "offset", "cut off"])
def test_a_damaged_archive_is_put_aside(how, capsys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with zipfile.ZipFile(out / "logs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("old.log", bytes(range(256)) * 4)
    content = damaged(how)(out / "logs.zip")
    session = Session(out, tmp_path / "scratch", "cpu", 60)
    assert "cannot be read" in capsys.readouterr().out
    assert session.run([[python("new", "print('new')")]])
    assert logs(out) == {"new.log": "new\n"}
    (aside,) = out.glob("damaged-*-logs.zip")
    assert aside.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in refused(monkeypatch, capsys, tmp_path / "file")
    assert "Not a directory" in refused(monkeypatch, capsys, tmp_path / "file" / "below")


@pytest.fixture
def disk(monkeypatch):
    """A disk of so many bytes for the record."""
    left, write = [1 << 30], os.write

    def limited(handle, content):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(handle, content[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    return left


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_full_disk_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, disk, size):
    disk[0] = size
    assert "No space left on device" in refused(monkeypatch, capsys, tmp_path)


def test_what_runs_ends_when_the_disk_is_full(tmp_path, disk):
    code = "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    pids = [tmp_path / name for name in "abc"]
    session = Session(tmp_path / "out", tmp_path / "scratch", "cpu", 60)
    look = session._look_at

    def fill(one):
        if all(pid.exists() and pid.read_text() for pid in pids):
            disk[0] = 0
            session._stop(15, None)
        look(one)

    session._look_at = fill
    with pytest.raises(OSError, match="No space left"):
        session.run([[python(pid.name, code.format(str(pid))) for pid in pids]])
    for pid in pids:
        until(lambda pid=pid: is_over(pid.read_text()))


def test_a_row_is_written_whole(monkeypatch, tmp_path):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:3]))
    record.append(tmp_path, {"part": "a", "figure": 1})
    monkeypatch.undo()
    assert record.read(tmp_path) == [{"part": "a", "figure": 1}]


def test_states_name_no_session(tmp_path):
    session = Session(tmp_path / "out", tmp_path / "scratch", "cpu", 60)
    assert session.run([[python("part", "")]])
    assert states(session.out).keys() == {"part"}
