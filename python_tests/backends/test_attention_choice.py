"""The table that says which kernels run attention on a GPU, and what is wrong with others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import franca_fast as ff
from franca_fast.backends import attention_choice
from franca_fast.backends.torch.varlen_attention import Run, runs_of
from franca_fast.errors import InputError

TABLE = {"origin": "a test", "longest": [64], "kernels": {"8.0": {"64": ["own", "torch"]}}}
RUNS = runs_of([50, 50, 257, 50])


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table that takes the place of the committed one."""

    def write(content):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("FRANCA_FAST_ATTENTION_TABLE", str(path))
        return path

    return write


@pytest.fixture
def card(monkeypatch):
    """A tensor as if it were on a card of capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return SimpleNamespace(is_cuda=True, device="cuda:0", shape=(407, 2, 64))


def test_runs_are_sequences_of_one_length_that_follow_each_other():
    assert list(RUNS) == [Run(0, 2, 50), Run(100, 1, 257), Run(357, 1, 50)]


def test_committed_table_says_that_it_is_an_estimate_and_covers_what_the_kernels_do():
    committed = attention_choice.read_table(attention_choice.COMMITTED)
    assert "estimate" in committed.origin
    for by_size in committed.kernels.values():
        assert set(by_size) == {"64", "128"}
    assert committed.kernel((9, 0), 64, 257) == committed.kernel((9, 0), 64, 50) == "own"
    assert committed.kernel((9, 0), 64, 1370) == "torch"


def test_cards_take_the_nearest_lower_capability(table):
    read = attention_choice.read_table(table(TABLE))
    kernels = [read.kernel(capability, 64, 64) for capability in ((7, 5), (8, 0), (8, 9), (12, 0))]
    assert kernels == ["torch", "own", "own", "own"]
    assert read.kernel((8, 0), 64, 65) == read.kernel((8, 0), 128, 1) == "torch"


def test_runs_are_split_by_the_table_that_the_environment_names(table, card):
    table(TABLE)
    assert attention_choice.own_runs(RUNS, card, "cuda") == (RUNS[0], RUNS[2])
    table({**TABLE, "kernels": {"9.0": {"64": ["torch", "own"]}}})
    assert attention_choice.own_runs(RUNS, card, "cuda") == (RUNS[1],)


def test_a_backend_that_was_asked_for_runs_everything(table, card):
    table(TABLE)
    with ff.use_backend("cuda"):
        assert attention_choice.own_runs(RUNS, card, "cuda") == RUNS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        {**TABLE, "longest": ["x"]},
        {**TABLE, "kernels": {"8.0": {"64": ["own"]}}},
        {**TABLE, "kernels": {"8.0": {"64": ["own", "fastest"]}}},
        {**TABLE, "kernels": {"ampere": {"64": ["own", "own"]}}},
        {**TABLE, "kernels": []},
    ],
)
def test_other_files_are_refused(table, card, content):
    table(content)
    with pytest.raises(InputError, match=r"FRANCA_FAST_ATTENTION_TABLE: .*; accepted: a file of"):
        attention_choice.own_runs(RUNS, card, "cuda")


def test_a_missing_file_is_refused(monkeypatch, card, tmp_path):
    monkeypatch.setenv("FRANCA_FAST_ATTENTION_TABLE", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"FRANCA_FAST_ATTENTION_TABLE: .*none"):
        attention_choice.own_runs(RUNS, card, "cuda")
