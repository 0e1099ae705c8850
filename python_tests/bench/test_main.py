"""The program: what it refuses, where it writes, and that it runs real parts on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile

import pytest

import bench.gpu.__main__ as program
from bench.gpu import record, report
from bench.gpu.parts import ROOT
from python_tests.bench.sessions import logs, run, states, until


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


def start(out, *names):
    command = [sys.executable, "-m", "bench.gpu", "--device=cpu", f"--out={out}"]
    command += [f"--part={name}" for name in names]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.timeout(300)
def test_the_program_runs_parts_and_reports(tmp_path):
    names = ["facts", "first use in a graph", "timings others", "tests cuda"]
    program = start(tmp_path, *names)
    said, _ = program.communicate()
    report = (tmp_path / "report.md").read_text()
    assert program.returncode == 0 and report in said
    assert {name: row["state"] for name, row in states(tmp_path).items()} == dict.fromkeys(
        names, "done"
    )
    assert set(logs(tmp_path)) == {f"{name.replace(' ', '_')}.log" for name in names}
    timed = {
        (row["case"].split()[0], row["variant"]) for row in record.read(tmp_path) if "ms" in row
    }
    assert timed >= {("sinkhorn", "eager"), ("loss", "eager"), ("scores", "library")}
    assert timed >= {("streamed", "eager"), ("attention", "sdpa")}
    assert report.startswith("# A dry run on the CPU")
    for title in ("Parts", "Machine", "Against float64", "Tests on the device", "Times"):
        assert f"## {title}" in report
    assert "could not be written" not in report


@pytest.mark.usefixtures("one_thread")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("part", "sign", "number"),
    [("smoke cuda", "check", signal.SIGKILL), ("timings others", "case", signal.SIGTERM)],
)
def test_a_real_part_is_killed(part, sign, number, tmp_path):
    program = start(tmp_path, "facts", part, "memcheck")
    until(lambda: any(row["part"] == part and sign in row for row in record.read(tmp_path)), 200)
    program.send_signal(number)
    program.communicate()
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        json.loads(line)
    stopped = number == signal.SIGTERM
    assert {name: row["state"] for name, row in states(tmp_path).items()} == {
        "facts": "done",
        part: "failed" if stopped else "begun",
        "memcheck": "not run" if stopped else "waiting",
    }
    assert (
        f"| {part} | {'failed' if stopped else 'begun, not finished'} |"
        in (tmp_path / "report.md").read_text()
    )
    assert zipfile.ZipFile(tmp_path / "logs.zip").testzip() is None
    assert "processors" in logs(tmp_path)["facts.log"]
