"""The program for a machine with a GPU, as far as it goes without one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    yield gpu
    del sys.modules["gpu"]


@pytest.fixture
def session(gpu, tmp_path):
    arguments = argparse.Namespace(device="cpu", quick=False, wheels=None, tests="", only="")
    return gpu.Session(arguments, tmp_path)


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.timeout(300)
def test_everything_runs_without_a_gpu(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "TESTS", ("python_tests/backends/test_device.py",))
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu.py", "--device=cpu", f"--out={tmp_path}", "--tests=two_to_the", "--only=sinkhorn"],
    )
    assert gpu.main() == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["tests"][0]["ran"] > 0 and not report["tests"][0]["failed"]
    assert all(row["roofline_share"] >= 0 for row in report["benchmarks"])
    assert "| eager |" in (tmp_path / "gpu.md").read_text()


def test_every_work_is_measured(gpu, tmp_path):
    import gpu_measure

    setting, out = gpu_measure.setting_of("cpu", False), tmp_path / "rows.json"
    works = set()
    for case in gpu_measure.cases(setting):
        gpu_measure.measure_case(setting, case.name, [], 0.0, out)
        rows = json.loads(out.read_text())
        assert [row["variant"] for row in rows] == list(case.variants)
        assert all(row["ms"] > 0 for row in rows)
        works.add(case.name.split(" ")[0])
    assert works >= {"sinkhorn", "loss", "scores", "streamed"}


def test_needs_a_gpu_unless_told_otherwise(gpu, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_what_fails_is_recorded_with_what_it_said(session):
    result = session.run(python("print('why'); raise SystemExit(3)"), 60)
    assert result["error"].startswith("status 3: why")


def test_what_hangs_is_ended_with_all_that_it_started(session, tmp_path):
    child = tmp_path / "child"
    code = (
        "import pathlib, subprocess, time\n"
        "process = subprocess.Popen(['sleep', '300'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(process.pid))\n"
        "time.sleep(300)"
    )
    result = session.run(python(code), 5)
    assert result["error"].startswith("no end after 5 s")
    status = Path("/proc", child.read_text(), "stat")
    deadline = time.monotonic() + 60
    while status.exists() and status.read_text().split()[2] != "Z":  # killed, but not gone yet
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_begins_after_the_time_is_spent(session):
    session.deadline = 0.0
    assert session.run(python("raise SystemExit(3)"), 60)["error"] == "not run: out of time"


def test_variants_after_a_crash_are_measured_in_a_new_process(gpu, session):
    answers = [
        ({"cases": {"work": ["a", "b", "c", "d"]}}, {}),
        (
            [{"case": "work", "variant": "a", "ms": 2.0}, {"case": "work", "variant": "b"}],
            {"error": "status -11: "},
        ),
        (None, {"error": "no end after 90 s: "}),
        ([{"case": "work", "variant": "d", "ms": 1.0}], {}),
    ]
    asked = []

    def measured(part, limit):
        asked.append(part)
        return answers[len(asked) - 1]

    session.measured = measured
    _, rows = gpu.measure(session)
    assert [row["variant"] for row in rows] == ["a", "b", "c", "d"]
    assert [row.get("error", "")[:9] for row in rows] == ["", "status -1", "no end af", ""]
    assert rows[3]["speedup"] == 2.0
    assert asked[3] == ["--part", "work", "--skip", "a", "--skip", "b", "--skip", "c"]


def test_failed_tests_are_named(gpu, session, tmp_path):
    (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-c", "/dev/null"]
    session.run([*command, str(tmp_path / "test_it.py")], 60)
    counts = gpu.counts(report)
    assert counts["ran"] == 2 and list(counts["failed"]) == ["test_b"]


def test_missing_packages_are_named(gpu, session, monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", {"surely_not_there": "surely-not-there"})
    assert "surely-not-there" in gpu.install_wheels(session)["error"]
    session.arguments.wheels = session.scratch
    assert gpu.install_wheels(session)["error"].startswith("status ")


@pytest.mark.parametrize("broken", ["build", "tests", "benchmarks"])
def test_one_failure_is_a_failure(gpu, broken):
    report = {"wheels": {}, "build": {}, "tests": [{}], "sanitizer": [], "benchmarks": [{}]}
    assert gpu.verdict(report)
    failed = {"error": "x"}
    assert not gpu.verdict(report | {broken: failed if broken == "build" else [failed]})
