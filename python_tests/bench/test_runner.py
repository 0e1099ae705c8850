"""Sessions with stand-ins for the parts: what fails, and what is killed."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import zipfile

import pytest

from bench.gpu import record
from bench.gpu.parts import ROOT
from bench.gpu.runner import Session
from python_tests.bench.sessions import is_over, logs, python, states, until
from python_tests.bench.stand_ins import STAGES

NAMES = [part.name for stage in STAGES for part in stage]


def start(out, *prefix):
    command = [sys.executable, "-m", "python_tests.bench.stand_ins", str(out)]
    return subprocess.Popen([*prefix, *command], cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("victim", NAMES)
def test_a_killed_session_says_what_ran_and_what_did_not(victim, number, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    stage = next(i for i, parts in enumerate(STAGES) if victim in [part.name for part in parts])
    before = [part.name for parts in STAGES[:stage] for part in parts]
    running = [part.name for part in STAGES[stage]]
    for name in before:
        (out / f"go {name}").touch()
    session = start(out)

    def pids():
        found = {row["part"]: row["pid"] for row in record.read(out) if "pid" in row}
        return found if set(running) <= set(found) else None

    found = until(pids)
    until(lambda: states(out).keys() == set(NAMES) and (out / "logs.zip").exists())
    session.send_signal(number)
    stopped = number == signal.SIGTERM
    assert session.wait(60) == (143 if stopped else -9)
    for name in running:  # what it started ends with it
        until(lambda name=name: is_over(found[name]))

    for line in (out / "rows.jsonl").read_text().splitlines():
        json.loads(line)
    report, archive = (out / "report.md").read_text(), logs(out)
    for name in NAMES:
        state = states(out)[name]
        if name in before:
            assert state["state"] == "done" and f"| {name} | done |" in report
            assert archive[f"{name}.log"].startswith('{"part"')
        elif name in running:
            assert state["state"] == ("failed" if stopped else "begun")
            assert f"| {name} | {'failed' if stopped else 'begun, not finished'} |" in report
            assert f"{name}.log" in archive
            assert not stopped or f"said by {name}" in archive[f"{name}.log"]
        else:
            assert state["state"] == ("not run" if stopped else "waiting")
            assert f"| {name} | {'not run' if stopped else 'not begun'} |" in report


def test_a_session_under_nohup_outlives_its_terminal(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    session = start(out, "nohup")
    until(lambda: states(out).get("two", {}).get("state") == "begun")
    session.send_signal(signal.SIGHUP)
    for name in NAMES:
        (out / f"go {name}").touch()
    assert session.wait(60) == 0
    assert {row["state"] for row in states(out).values()} == {"done"}


def test_a_session_after_a_killed_one_takes_its_place(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    session = start(out)
    until(lambda: states(out).get("one", {}).get("state") == "begun")
    session.kill()
    session.wait()
    assert list(out.glob(".*"))
    with (out / "rows.jsonl").open("a") as rows:
        rows.write('{"part": "one", "fig')  # a row that was being written
    for name in NAMES:
        (out / f"go {name}").touch()
    assert start(out).wait(60) == 0
    assert not list(out.glob(".*"))
    assert {row["state"] for row in states(out).values()} == {"done"}
    assert sum("figure" in row for row in record.read(out)) == len(NAMES)


def test_what_fails_is_recorded_whole_and_the_rest_goes_on(tmp_path):
    child = tmp_path / "child"
    hang = (
        "import pathlib, subprocess, time\n"
        "process = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(process.pid))\n"
        "print('hangs', flush=True)\n"
        "time.sleep(300)"
    )
    parts = [
        python("status", "print('why'); raise SystemExit(3)"),
        python("crash", "import os; print('soon', flush=True); os.abort()"),
        python("hang", hang, seconds=2),
        python("words", "print('many words ' * 500_000); raise SystemExit(1)"),
        python("after", "print('well')"),
    ]
    session = Session(tmp_path / "out", tmp_path / "scratch", "cpu", 60)
    assert not session.run([parts[:4], parts[4:]])
    found, archive = states(session.out), logs(session.out)
    assert {name: row.get("why") for name, row in found.items()} == {
        "status": "status 3",
        "crash": "status -6",
        "hang": "out of time",
        "words": "status 1",
        "after": None,
    }
    assert found["status"]["said"] == "why" and found["after"]["state"] == "done"
    assert len(found["words"]["said"]) < 5000
    assert archive["words.log"].count("many words") == 500_000
    assert archive["crash.log"] == "soon\n" and archive["after.log"] == "well\n"
    assert archive["hang.log"] == "hangs\n"
    until(lambda: is_over(child.read_text()))


def test_nothing_begins_after_the_time_is_spent(tmp_path):
    session = Session(tmp_path / "out", tmp_path / "scratch", "cpu", 3.0)
    assert not session.run([[python("long", "import time; time.sleep(300)")], [python("more", "")]])
    found = states(session.out)
    assert found["long"]["why"] == "out of time" and found["long"]["seconds"] < 30
    assert (found["more"]["state"], found["more"]["why"]) == ("not run", "out of time")


def test_logs_of_an_earlier_session_stay_and_its_failures_do_not_count(tmp_path):
    for number, (name, code) in enumerate([("old", "print('old'); exit(1)"), ("new", "")]):
        session = Session(tmp_path / "out", tmp_path / str(number), "cpu", 60)
        assert session.run([[python(name, code)]]) == (name == "new")
    assert logs(session.out) == {"old.log": "old\n", "new.log": ""}
    assert "| old | failed |" in (session.out / "report.md").read_text()


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


def test_states_name_no_session(tmp_path):
    session = Session(tmp_path / "out", tmp_path / "scratch", "cpu", 60)
    assert session.run([[python("part", "")]])
    assert states(session.out).keys() == {"part"}
