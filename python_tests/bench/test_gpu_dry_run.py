"""The program for a machine with a GPU, as far as it goes without one: all its parts, tiny."""

from __future__ import annotations

import importlib
import json
import runpy
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from bench.gpu import demo, measure, record
from bench.gpu.folder import TEMPORARY, taken
from bench.gpu.parts import ROOT, SESSIONS
from python_tests.bench.test_gpu_session import logs, states, until

PARTS = [part for stages in SESSIONS.values() for stage in stages for part in stage]
# What a part adds to the record in a dry run, by its module.
ADDS = {
    "build": "note",
    "choice": "note",
    "demo": "demo_seconds",
    "facts": "fact",
    "profile": "note",
    "sanitizer": "note",
    "smoke": "check",
    "steps": "images_per_second",
    "tests": "test",
    "timings": "ms",
}
NOTHING_TO_TIME = {"timings triton"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Also of what is started: threads that wait for each other would double the time."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_runs_without_a_gpu(part, monkeypatch, tmp_path):
    """In this process, which has imported PyTorch."""
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setenv(record.PART, part.name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = part.command("cpu")
    assert command[:3] == [sys.executable, "-m", f"bench.gpu.{part.module}"]
    monkeypatch.setattr(sys, "argv", command[2:])
    monkeypatch.delitem(sys.modules, command[2], raising=False)  # it is to run, not to be imported
    if part.module == "timings":
        begin = [sys.executable, "-m", "bench.gpu.measure"]

        def measure_all(command, folder):
            assert command[:3] == begin
            measure.main(command[3:])
            return True

        timings = importlib.import_module(command[2])
        monkeypatch.setattr(timings, "measure_all", measure_all)
        assert timings.main() == 0
    else:
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(command[2], run_name="__main__")
        assert ended.value.code == 0
    rows = record.read(tmp_path)
    adds = "note" if "--warm" in part.arguments else ADDS[part.module]
    assert any(adds in row for row in rows) or part.name in NOTHING_TO_TIME
    assert not any("error" in row and "check" not in row for row in rows)
    assert all(row["passed"] for row in rows if "check" in row)
    assert all(row["outcome"] == "passed" for row in rows if "test" in row)


def start(out, *names):
    command = [sys.executable, "-m", "bench.gpu", "--device=cpu", f"--out={out}"]
    command += [f"--part={name}" for name in names]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_what_the_demo_leaves_is_cleared(monkeypatch, tmp_path):
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["demo", "--device=cpu"])
    left = []

    def run(command, **_):
        left.extend(tmp_path.glob(f"{TEMPORARY}*"))
        assert str(left[0]) in command[5]
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert demo.main() == 0
    left[0].mkdir()  # as when it was killed
    with taken(tmp_path, "cpu"):
        assert not left[0].exists()


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
