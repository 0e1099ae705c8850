"""What the tests of sessions ask: whether a process is over, what a folder holds, what is said."""

from __future__ import annotations

import sys
import time
import zipfile
from pathlib import Path

from bench.gpu import record
from bench.gpu.__main__ import main
from python_tests.bench.stand_ins import StandIn


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


def python(name, code, seconds=60):
    return StandIn(name, seconds, code)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    return main()
