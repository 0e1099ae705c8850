"""Every part of every session, tiny, without a GPU."""

from __future__ import annotations

import importlib
import runpy
import sys

import pytest

from bench.gpu import measure, record
from bench.gpu.parts import ROOT, SESSIONS

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


@pytest.mark.usefixtures("one_thread")
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
