"""The benchmark that chooses attention kernels, with times that are made up."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from franca_fast.backends.attention_choice import COMMITTED, read_table

SCRIPT = Path(__file__).parents[1] / "bench" / "attention_choice.py"


@pytest.fixture
def benchmark_script(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("bench_attention_choice", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_faster_kernels_are_written_for_the_card(benchmark_script, tmp_path):
    def time_of(backend, head_dim, length):
        return {"cuda": length, "torch": 200}[backend] * head_dim

    entry = benchmark_script.measured(time_of, "cuda")
    path = tmp_path / "table.json"
    for card in ("an older card", "a card"):  # a second measurement replaces the first
        benchmark_script.write_entry(path, "9.0", card, entry)
    table, committed = read_table(path), read_table(COMMITTED)
    assert table.kernels["9.0"]["64"] == ["own", "own", "torch", "torch", "torch"]
    assert table.kernels["8.0"] == committed.kernels["8.0"]
    assert "9.0 measured on a card" in table.origin and "older" not in table.origin
    assert len(benchmark_script.LENGTHS) == len(committed.longest) + 1


def test_every_bucket_is_measured_at_a_length_of_its_own(benchmark_script):
    longest = read_table(COMMITTED).longest
    buckets = [sum(length > bound for bound in longest) for length in benchmark_script.LENGTHS]
    assert buckets == list(range(len(longest) + 1))
