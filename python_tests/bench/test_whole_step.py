"""Whole steps of two versions: names, and losses side by side."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from bench.whole_step import command_line, compared, markdown, report, version_of, versions


def test_an_earlier_version_does_the_same_as_the_first_backend(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    options = Namespace(
        case="demo", precision="bf16", backend=["torch"], overrides=["a.b=1"], threads=1
    )
    found = versions(Namespace(**vars(options), against=old))
    same = ["demo", "bf16", "torch", "a.b=1"]
    assert found == {
        "torch": ("bench.step_child", [*same, "--threads", "1"]),
        "old": ("bench.step_child", [*same, "--package", str(old), "--threads", "1"]),
    }


def test_where_a_checkout_is_stays_out_of_the_command(monkeypatch, tmp_path):
    words = ["demo", "--against", str(tmp_path), "--out", str(tmp_path / "o.json")]
    monkeypatch.setattr(sys, "argv", ["x.py", *words])
    command = f"python bench/whole_step.py demo --against {tmp_path.name} --out o.json"
    assert command_line("whole_step", tmp_path) == command
    assert len(version_of(Path(__file__).parent).split("-")[0]) >= 7


def test_losses_are_shown_at_round_steps_at_the_last_and_where_they_differ_most():
    ours, theirs = [1.0] * 12, [1.0] * 12
    theirs[6] = 2.0
    rows = compared({"new": ours, "old": theirs})
    assert [row[1] for row in rows] == ["1", "2", "5", "7 (largest)", "10", "12"]
    assert rows[3] == ["old", "7 (largest)", 1.0, 2.0, 0.5]


def test_the_table_has_medians_and_the_memory_of_the_last_step():
    def answers(*seconds):
        return [{"seconds": s, "loss": 1.0, "peak_bytes": 2**30 + i} for i, s in enumerate(seconds)]

    found = report({"new": answers(0.1, 0.2, 9.0), "old": answers(0.3, 0.3, 0.4)}, images=4)
    assert found["peak_bytes"] == {"new": 2**30 + 2, "old": 2**30 + 2}
    table = markdown(found)
    assert "| new | 200.0 | 20.0 | 1.00x | 1.00 |" in table
    assert "| old | 300.0 | 13.3 | 1.50x | 1.00 |" in table
    assert "| old | 1 (largest) | 1.000000 | 1.000000 | 0.0e+00 |" in table
