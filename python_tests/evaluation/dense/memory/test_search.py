from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.search import (
    NOTHING,
    Neighbours,
    attention_weights,
    bytes_per_query,
    unit_rows,
)

MODULE = importlib.import_module("franca_fast.evaluation.dense.memory.search")
SHAPES = [(1, 1, 1, 1), (7, 5, 3, 9), (13, 101, 17, 30), (64, 33, 1, 4), (30, 257, 48, 7)]


def plain_neighbours(
    queries: Tensor, memory: Tensor, numbers: Sequence[int], k: int
) -> list[list[tuple[float, int]]]:
    """(cosine, number) of the k most similar rows of the memory, with Python's own numbers."""
    found = []
    for x in queries.tolist():
        rows = []
        for y, number in zip(memory.tolist(), numbers, strict=True):
            rows.append((math.fsum(a * b for a, b in zip(x, y, strict=True)), number))
        found.append(sorted(rows, key=lambda row: (-row[0], row[1]))[:k])
    return found


def searched(queries: Tensor, memory: Tensor, k: int, blocks: Sequence[Tensor]) -> Neighbours:
    found = Neighbours(queries, k)
    for rows in blocks:
        found.add(memory[rows], rows)
    return found


def same(a: Neighbours, b: Neighbours) -> bool:
    return torch.equal(a.similarity, b.similarity) and torch.equal(a.numbers, b.numbers)


@pytest.mark.parametrize(("q", "n", "d", "k"), SHAPES)
def test_equals_a_plain_search_exactly(q: int, n: int, d: int, k: int) -> None:
    queries, memory = unit_rows(torch.randn(q, d)), unit_rows(torch.randn(n, d))
    numbers = torch.randperm(3 * n)[:n]
    found = Neighbours(queries, k)
    found.add(memory, numbers)
    for row, (similarity, ids) in enumerate(zip(found.similarity, found.numbers, strict=True)):
        expected = plain_neighbours(queries[row : row + 1], memory, numbers.tolist(), k)[0]
        padded = expected + [(-math.inf, NOTHING)] * (k - len(expected))
        assert list(zip(similarity.tolist(), ids.tolist(), strict=True)) == padded


@pytest.mark.parametrize(("q", "n", "d", "k"), SHAPES)
@pytest.mark.parametrize("few", [1, 10**9])
def test_blocks_tiles_and_order_change_nothing(
    q: int, n: int, d: int, k: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, memory = unit_rows(torch.randn(q, d)), unit_rows(torch.randn(n, d))
    whole = searched(queries, memory, k, [torch.arange(n)])
    monkeypatch.setattr(MODULE, "_TILE", 5)
    monkeypatch.setattr(MODULE, "_PAIRS_EXACT", 3)
    monkeypatch.setattr(MODULE, "_NUMBERS", 2 * d)
    monkeypatch.setattr(MODULE, "_FEW", few)  # so that either way finds everything
    for size in (1, 4, n):
        assert same(searched(queries, memory, k, torch.randperm(n).split(size)), whole), size


def test_equal_rows_come_in_the_order_of_their_numbers() -> None:
    queries = unit_rows(torch.randn(6, 4))
    memory = unit_rows(torch.randn(3, 4)).repeat(40, 1)
    whole = searched(queries, memory, 25, [torch.arange(120)])
    expected = plain_neighbours(queries, memory, range(120), 25)
    assert whole.numbers.tolist() == [[number for _, number in row] for row in expected]
    for size in (1, 7, 50):
        assert same(searched(queries, memory, 25, torch.randperm(120).split(size)), whole)


def test_cosines_that_float32_cannot_tell_apart_are_told_apart() -> None:
    """As those of an untrained network."""
    common = torch.randn(32)
    queries = unit_rows(common + 1e-4 * torch.randn(5, 32))
    memory = unit_rows(common + 1e-4 * torch.randn(90, 32))
    assert len((queries[:1] @ memory.T).unique()) < 20  # what makes this a test
    found = searched(queries, memory, 11, torch.arange(90).split(13))
    expected = plain_neighbours(queries, memory, range(90), 11)
    assert found.numbers.tolist() == [[number for _, number in row] for row in expected]


def test_autocast_outside_does_not_reach_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, memory = unit_rows(torch.randn(900, 64)), unit_rows(torch.randn(4000, 64))
    blocks = torch.arange(4000).split(500)
    whole = searched(queries, memory, 5, blocks)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(searched(queries, memory, 5, blocks), whole)
        monkeypatch.setattr(MODULE, "_plain_float32", lambda _: nullcontext())
        assert not same(searched(queries, memory, 5, blocks), whole)  # what makes this a test


def test_the_precision_of_products_is_put_back() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        Neighbours(unit_rows(torch.eye(2)), 1).add(unit_rows(torch.eye(2)), torch.arange(2))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_unit_rows_are_on_the_grid_and_close_to_float64(scale: float) -> None:
    features = scale * torch.randn(50, 37)
    rows = unit_rows(features)
    exact = features.double() / features.double().norm(dim=1, keepdim=True)
    assert (rows.double() - exact).abs().max() <= 2**-24
    steps = rows.double() * 2**26
    assert torch.equal(steps, steps.round())


def test_unit_rows_cut_before_they_normalise() -> None:
    features = torch.randn(4, 9)
    assert torch.equal(unit_rows(features, 5), unit_rows(features[:, :5].clone()))
    assert torch.equal(unit_rows(torch.zeros(1, 3)), torch.zeros(1, 3))
    assert unit_rows(torch.zeros(0, 3), 2).shape == (0, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features = torch.ones(3, 4)
    features[1, 2] = bad
    with pytest.raises(InputError, match="features: not all finite"):
        unit_rows(features)


def test_no_neighbours_are_refused() -> None:
    with pytest.raises(InputError, match="k: 0; accepted: 1 or more"):
        Neighbours(torch.eye(2), 0)


def test_attention_is_a_softmax_of_cosines() -> None:
    similarity = torch.rand(6, 9, dtype=torch.float64)
    weights = attention_weights(similarity, 0.02).numpy()
    plain = np.exp(similarity.numpy() / 0.02)
    assert np.allclose(weights, plain / plain.sum(1, keepdims=True), rtol=1e-12)


def test_bytes_are_those_of_the_tensors() -> None:
    found = Neighbours(unit_rows(torch.randn(11, 24)), 3)
    tensors = (found.queries, found.similarity, found.numbers)
    assert sum(t.numel() * t.element_size() for t in tensors) == 11 * bytes_per_query(24, 3)
