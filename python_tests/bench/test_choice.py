"""The table of choices that is measured on a card."""

from __future__ import annotations

import sys

import torch

from bench.gpu import choice, record
from franca_fast.backends.choices import COMMITTED, read_table


def test_the_fastest_kernels_are_written_for_the_card(tmp_path):
    times = {
        (size, length): {"cuda": length * size, "triton": 1.1 * length * size, "torch": 200 * size}
        for size in choice.HEAD_DIMS
        for length in choice.LENGTHS
    }
    own, attention = choice.attention_entry(times)
    assert own == "cuda"
    operators = choice.operator_entry({"sinkhorn": {"cuda": 2.0, "triton": 1.0}})
    path = tmp_path / "table.json"
    for card in ("an older card", "a card"):  # a second measurement replaces the first
        choice.write_entries(path, "9.0", card, operators, attention)
    table, committed = read_table(path), read_table(COMMITTED)
    assert table.attention["9.0"]["64"] == ["own", "own", "torch", "torch", "torch"]
    assert table.attention["8.0"] == committed.attention["8.0"]
    assert table.backend("sinkhorn", (9, 0)) == "triton"
    assert "measured on a card" in table.origin_of((9, 0)) and "older" not in str(table.origin)
    assert table.origin_of((8, 0)) == committed.origin_of((8, 0))


def test_the_table_of_choices_is_kept_beside_the_record(monkeypatch, tmp_path):
    times = {"cuda": 2.0, "triton": 1.0, "torch": 3.0}
    attention = [(size, length, times) for size in choice.HEAD_DIMS for length in choice.LENGTHS]
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setattr(choice, "operator_times", lambda _: [("sinkhorn", times)])
    monkeypatch.setattr(choice, "attention_times", lambda _: attention)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    table = tmp_path / "checkout" / "choices.json"
    monkeypatch.setattr(sys, "argv", ["choice", "--out", str(table)])
    assert choice.main() == 0
    assert (tmp_path / "choices.json").read_text() == table.read_text()
    assert read_table(tmp_path / "choices.json").backend("sinkhorn", (9, 0)) == "triton"


def test_without_kernels_of_ours_attention_is_all_pytorchs():
    times = {(64, length): {"torch": 1.0} for length in choice.LENGTHS}
    assert choice.attention_entry(times) == ("torch", {"64": ["torch"] * len(choice.LENGTHS)})


def test_every_bucket_is_measured_at_a_length_of_its_own():
    longest = read_table(COMMITTED).longest
    buckets = [sum(length > bound for bound in longest) for length in choice.LENGTHS]
    assert buckets == list(range(len(longest) + 1))
