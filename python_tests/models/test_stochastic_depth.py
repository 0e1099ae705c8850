"""Subsets of packed images: what is drawn, and that taking and adding are what they say."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.models.stochastic_depth import (
    Subset,
    add_to_images,
    draw_subsets,
    rows_of_images,
    seqlens_of,
    take_images,
)

CROPS = [(4, 3), (6, 2)]
CPU = torch.device("cpu")


def drawn(rate: float) -> Subset:
    ((subset, _),) = draw_subsets(CROPS, [rate], CPU)
    assert subset is not None
    return subset


def test_branches_draw_one_after_the_other_for_each_size() -> None:
    torch.manual_seed(3)
    expected = [
        torch.randperm(n)[:kept]
        for kept in ((2, 3), (2, 3), (3, 4), (3, 4))
        for n, kept in zip((4, 6), kept, strict=True)
    ]
    torch.manual_seed(3)
    first, every, last = draw_subsets(CROPS, [0.5, 0.0, 0.25], CPU)
    assert every == (None, None)
    found = [kept for subset in (*first, *last) for kept in subset.kept]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (first[0].kept_crops, last[0].kept_crops) == ([(2, 3), (3, 2)], [(3, 3), (4, 2)])


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    state = torch.get_rng_state()
    assert draw_subsets(CROPS, [0.0, 0.0], CPU) == [(None, None)] * 2
    assert torch.equal(torch.get_rng_state(), state)


def test_one_image_of_each_size_stays() -> None:
    assert seqlens_of(drawn(0.99).kept_crops) == [3, 2]


def by_index(x: Tensor, subset: Subset) -> Tensor:
    """What taking, squaring and adding gives, token by token."""
    starts, factors, indices = (0, 12), (4 / 2, 6 / 3), []
    for start, (_, tokens), kept in zip(starts, CROPS, subset.kept, strict=True):
        indices.append((kept[:, None] * tokens + torch.arange(tokens)).flatten() + start)
    scale = torch.cat([x.new_full((len(i),), f) for i, f in zip(indices, factors, strict=True)])
    index = torch.cat(indices)
    return x.index_add(0, index, x.index_select(0, index).square() * scale[:, None])


def test_values_and_gradients_are_those_of_indices_of_tokens() -> None:
    subset = drawn(0.5)
    x = torch.randn(24, 5, dtype=torch.float64, requires_grad=True)
    taken = take_images(x, subset)
    ours, theirs = add_to_images(x, taken, taken.square(), subset), by_index(x, subset)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(24, 5, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_residual_of_float32_is_added_before_the_sum_is_rounded() -> None:
    subset = drawn(0.5)
    x = torch.randn(24, 5).bfloat16().requires_grad_()
    residual = torch.randn(12, 5, requires_grad=True)
    taken = take_images(x, subset)
    total = add_to_images(x, taken, residual, subset)
    total.sum().backward()
    exact = (taken.float() + 2 * residual).bfloat16()
    assert total.dtype == torch.bfloat16 and residual.grad.dtype == torch.float32
    assert torch.equal(take_images(total, subset), exact)
    assert torch.equal(residual.grad, torch.full((12, 5), 2.0))
    assert torch.equal(x.grad, torch.ones(24, 5).bfloat16())


def test_rows_are_found_among_the_images_that_are_kept() -> None:
    subset = drawn(0.5)
    x = torch.randn(24, 5, dtype=torch.float64)
    rows = torch.tensor([0, 5, 4, 11, 13, 17, 22, 23, 8])
    places, factors = rows_of_images(subset, rows, x.dtype)
    starts = (0, 12)
    kept = torch.cat(
        [
            (images[:, None] * tokens + torch.arange(tokens)).flatten() + start
            for start, (_, tokens), images in zip(starts, CROPS, subset.kept, strict=True)
        ]
    )
    inside = torch.isin(rows, kept)
    assert torch.equal(factors.squeeze(1), inside * 2.0) and factors.dtype == x.dtype
    assert torch.equal(take_images(x, subset)[places[inside]], x[rows[inside]])
    assert torch.equal(places[~inside], torch.zeros_like(places[~inside]))
