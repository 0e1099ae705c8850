"""The table that says which kernels run on which card, and what is wrong with others."""

from __future__ import annotations

import pytest

import franca_fast as ff
from franca_fast.backends import _fused_attention as fused_attention
from franca_fast.backends import choices, registry
from franca_fast.backends.torch.varlen_attention import runs_of
from franca_fast.errors import InputError

TABLE = {
    "origin": ["8.0 is a test.", "9.0 measured on a card, quickly."],
    "operators": {"8.0": {"sinkhorn": "triton"}, "9.0": {"sinkhorn": "torch"}},
    "longest": [64],
    "attention": {"8.0": {"64": ["own", "torch"]}},
}
RUNS = runs_of([50, 50, 257, 50])


def test_committed_table_covers_what_the_kernels_do_and_says_where_it_is_from():
    committed = choices.read_table(choices.COMMITTED)
    assert {"8.0", "9.0", "10.0"} <= set(committed.attention) and committed.operators["9.0"]
    for by_size in committed.attention.values():
        assert set(by_size) == {"64", "128"}
    for capability in ((8, 0), (9, 0), (10, 0)):
        origin = committed.origin_of(capability)
        assert "measured" in origin or "estimate" in origin


def test_cards_take_the_nearest_lower_capability(table):
    read = choices.read_table(table(TABLE))
    cards = ((7, 5), (8, 0), (8, 9), (12, 0))
    assert [read.attention_kernel(c, 64, 64) for c in cards] == ["torch", "own", "own", "own"]
    assert [read.backend("sinkhorn", c) for c in cards] == [None, "triton", "triton", "torch"]
    assert read.attention_kernel((8, 0), 64, 65) == read.attention_kernel((8, 0), 128, 1) == "torch"
    assert read.backend("prototype_scores", (9, 0)) is None


def test_the_origin_of_a_card_is_that_of_the_entries_it_takes(table):
    read = choices.read_table(table(TABLE))
    assert read.origin_of((8, 6)) == "8.0 is a test."
    assert read.origin_of((9, 0)) == "8.0 is a test. 9.0 measured on a card, quickly."
    both = choices.read_table(table({**TABLE, "attention": {**TABLE["attention"], "10.0": {}}}))
    assert both.origin_of((10, 0)) == (
        "9.0 measured on a card, quickly. the entry of 10.0 does not say where it is from"
    )
    assert read.origin_of((7, 0)) == "nothing is known of compute capability 7.0"


def test_a_backend_that_was_asked_for_runs_everything(table, card):
    table(TABLE)
    with ff.use_backend("cuda"):
        assert fused_attention.own_runs(RUNS, card, "cuda") == RUNS
        assert registry._select("sinkhorn", card) == "cuda"


def test_operators_run_where_the_table_says_and_else_on_the_first_that_can(table, card):
    table(TABLE)
    assert registry._select("sinkhorn", card) == "torch"
    assert registry._select("clustering_cross_entropy", card) == "cuda"


def test_what_the_table_names_and_cannot_run_is_passed_over(table, card, monkeypatch):
    table({**TABLE, "operators": {"9.0": {"sinkhorn": "triton"}}})
    missing = {"triton": "triton is not installed"}
    monkeypatch.setattr(registry, "_unavailable", lambda name, *_: missing.get(name))
    assert registry._select("sinkhorn", card) == "cuda"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        {**TABLE, "longest": ["x"]},
        {**TABLE, "longest": [64.5]},
        {**TABLE, "longest": [64, 32]},
        {**TABLE, "longest": "64"},
        {**TABLE, "origin": [3]},
        {**TABLE, "origin": "8.0 is a test."},
        {**TABLE, "attention": {"8.0": {"abc": ["own", "own"]}}},
        "[" * 100000,
        {**TABLE, "attention": {"8.0": {"64": ["own"]}}},
        {**TABLE, "attention": {"8.0": {"64": ["own", "fastest"]}}},
        {**TABLE, "attention": {"ampere": {"64": ["own", "own"]}}},
        {**TABLE, "attention": []},
        {**TABLE, "operators": {"9.0": {"sinkhorn": "fastest"}}},
        {**TABLE, "operators": {"9.0": {"sinkhole": "cuda"}}},
    ],
)
def test_other_files_are_refused(table, card, content):
    table(content)
    with pytest.raises(InputError, match=r"FRANCA_FAST_CHOICES: .*; accepted: a file of"):
        fused_attention.own_runs(RUNS, card, "cuda")


def test_a_missing_file_is_refused(monkeypatch, card, tmp_path):
    monkeypatch.setenv("FRANCA_FAST_CHOICES", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"FRANCA_FAST_CHOICES: .*none"):
        fused_attention.own_runs(RUNS, card, "cuda")
