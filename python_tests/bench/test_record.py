"""Rows of a record, whole or cut off."""

from __future__ import annotations

import os

import pytest

from bench.gpu import record


def test_a_row_is_written_whole(monkeypatch, tmp_path):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:3]))
    record.append(tmp_path, {"part": "a", "figure": 1})
    monkeypatch.undo()
    assert record.read(tmp_path) == [{"part": "a", "figure": 1}]


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
