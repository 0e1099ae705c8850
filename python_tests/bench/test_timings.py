"""Timings in processes of their own, which may crash or hang."""

from __future__ import annotations

import sys

import pytest

from bench.gpu import record, timings
from bench.gpu.parts import ROOT

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
