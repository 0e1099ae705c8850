"""Sessions of the GPU benchmarks with stand-ins for the parts: what fails, and what is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bench.gpu import record, timings
from bench.gpu.__main__ import main
from bench.gpu.parts import ROOT
from bench.gpu.runner import Session
from python_tests.bench.stand_ins import STAGES, StandIn

NAMES = [part.name for stage in STAGES for part in stage]


def until(happened, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def is_over(pid):
    stat = Path("/proc", str(pid), "stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def states(out):
    return {row["part"]: row for row in record.read(out) if record.is_state(row)}


def logs(out):
    with zipfile.ZipFile(out / "logs.zip") as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


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


def python(name, code, seconds=60):
    return StandIn(name, seconds, code)


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


def test_a_row_that_was_cut_off_costs_only_itself(tmp_path):
    record.append(tmp_path, {"part": "a", "figure": 1})
    with (tmp_path / record.ROWS).open("a") as rows:
        rows.write('{"part": "a", "fig')
    assert record.read(tmp_path) == [{"part": "a", "figure": 1}]
    record.append(tmp_path, {"part": "a", "figure": 3})
    assert [row["figure"] for row in record.read(tmp_path)] == [1, 3]


@pytest.mark.parametrize(
    "line",
    ['{"part": ["a"], "state": "begun"}', '{"part": "a", "state": {}}', '"part"', "[" * 100_000],
    ids=lambda line: line[:40],
)
def test_a_row_of_another_form_is_left_out(tmp_path, line):
    record.append(tmp_path, {"part": "a", "figure": 1})
    with (tmp_path / record.ROWS).open("a") as rows:
        rows.write(f"{line}\n")
    assert record.read(tmp_path) == [{"part": "a", "figure": 1}]


WORKER = """
import os, sys, time
from bench.gpu import record
for name in "abcd":
    if f"--skip=work::{name}" in sys.argv:
        continue
    record.add(case="work", variant=name, state="begun")
    if name == "b":
        os.abort()
    if name == "c":
        time.sleep(300)
    record.add(case="work", variant=name, ms=1.0)
if "--skip=work::a" not in sys.argv:
    sys.exit(7)
"""


@pytest.fixture
def part(monkeypatch, tmp_path):
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setenv(record.PART, "timings")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # What an earlier session in the same folder measured is measured again.
    record.append(tmp_path, {"part": "timings", "case": "work", "variant": "d", "state": "begun"})
    record.append(tmp_path, {"part": "timings", "state": "begun"})


def test_variants_after_a_crash_or_a_hang_are_measured_in_a_new_process(part, tmp_path):
    assert not timings.measure_all([sys.executable, "-c", WORKER], tmp_path, stall=2.0)
    found = [row for row in record.read(tmp_path) if "ms" in row or "error" in row]
    assert [(row["variant"], row.get("error")) for row in found] == [
        ("a", None),
        ("b", "ended with status -6"),
        ("c", "no row for 2 s"),
        ("d", None),
    ]


@pytest.mark.parametrize(
    ("code", "tries"),
    [
        ("raise SystemExit(7)", 1),
        (WORKER.replace("abcd", "a"), 1),
        (WORKER.replace("abcd", "a") + "sys.exit(7)", 2),
    ],
    ids=["at once", "once", "always"],
)
def test_a_process_that_fails_on_its_own_is_not_begun_for_ever(part, tmp_path, code, tries):
    assert not timings.measure_all([sys.executable, "-c", code], tmp_path)
    errors = [row for row in record.read(tmp_path) if "error" in row]
    assert [row["error"] for row in errors] == ["ended with status 7"] * tries
    assert not any("case" in row for row in errors)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    return main()


@pytest.mark.parametrize(
    "arguments",
    [["--part", "no such part"], ["third"], [], ["first", "--part", "memcheck"]],
    ids=" ".join,
)
def test_what_is_not_there_is_refused(monkeypatch, capsys, tmp_path, arguments):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments, "--out", tmp_path / "out")
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_session_needs_a_time(monkeypatch, capsys, tmp_path, seconds):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "first", "--device=cpu", "--seconds", seconds, "--out", tmp_path / "out")
    said = f"argument --seconds: '{seconds}' was given; a positive finite number is needed"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("driver", ["none", "no card"])
def test_without_a_gpu_nothing_is_done(monkeypatch, capsys, tmp_path, driver):
    if driver == "no card":
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho No devices were found\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep if driver == "no card" else None)
    if driver == "none":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert run(monkeypatch, "first", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().out
    assert "no GPU" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
