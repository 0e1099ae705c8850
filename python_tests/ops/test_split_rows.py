"""Parts of the rows of a matrix and their gradient."""

from __future__ import annotations

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.ops import Scores, split_rows


def test_equals_split_and_its_gradient():
    matrix = torch.randn(9, 4, requires_grad=True)
    parts = split_rows(matrix, [2, 0, 7])
    for ours, theirs in zip(parts, matrix.split([2, 0, 7]), strict=True):
        assert torch.equal(ours, theirs)
    factor = torch.randn(9, 4)
    loss = sum((p * f).sum() for p, f in zip(parts, factor.split([2, 0, 7]), strict=True))
    loss.backward()
    assert torch.equal(matrix.grad, factor)


@pytest.mark.parametrize("more", [(), ([torch.zeros(3, 4)], [torch.ones(3)])])
def test_parts_of_scores_share_their_prototypes(more):
    scores = Scores([torch.randn(9, 4), torch.randn(9, 4)], *more)
    parts = split_rows(scores, [2, 7])
    assert [part.n_rows for part in parts] == [2, 7]
    for part, rows in zip(parts, (slice(0, 2), slice(2, 9)), strict=True):
        assert part.prototypes is scores.prototypes and part.scales is scores.scales
        assert all(map(torch.equal, part.values, (z[rows] for z in scores.values)))


def test_a_part_without_gradient_counts_as_zero():
    matrix = torch.randn(5, 3, requires_grad=True)
    split_rows(matrix, [2, 3])[1].sum().backward()
    assert torch.equal(matrix.grad, torch.tensor([0.0, 0, 1, 1, 1]).unsqueeze(1).expand(5, 3))


def test_adjacent_gradients_are_taken_as_they_are():
    matrix = torch.randn(6, 4, requires_grad=True)
    scores = matrix * 1.0
    scores.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    seen: list[int] = []
    parts = split_rows(scores, [2, 4])
    gradient = torch.randn(6, 4)
    torch.autograd.backward(parts, list(gradient.split([2, 4])))
    assert seen == [gradient.data_ptr()]
    assert torch.equal(matrix.grad, gradient)


def test_gradients_in_another_order_are_copied():
    matrix = torch.randn(4, 2, requires_grad=True)
    gradient = torch.randn(4, 2)
    second, first = gradient.split([2, 2])
    torch.autograd.backward(split_rows(matrix, [2, 2]), [first, second])
    assert torch.equal(matrix.grad, torch.cat([first, second]))


def test_gradient_of_the_gradient():
    matrix = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    sizes = [2, 3]
    seconds = []
    for split in (split_rows, torch.split):
        (gradient,) = torch.autograd.grad(
            torch.cat(split(matrix, sizes)).pow(3).sum(), matrix, create_graph=True
        )
        seconds += torch.autograd.grad(gradient.pow(2).sum(), matrix)
    assert torch.equal(*seconds)


@pytest.mark.parametrize(
    ("matrix", "sizes", "message"),
    [
        (torch.zeros(5, 2, 1), [2, 3], "matrix"),
        ([[1.0]], [1], "matrix"),
        (torch.zeros(5, 2), [2, 2], r"sizes: \[2, 2\]; accepted: .* 5 rows"),
        (torch.zeros(5, 2), [-1, 6], "sizes"),
        (torch.zeros(5, 2), [], "sizes"),
        (torch.zeros(5, 2), 2, "sizes: 2"),
        (torch.zeros(5, 2), "ab", "sizes: 'ab'"),
    ],
)
def test_wrong_arguments_are_named(matrix, sizes, message):
    with pytest.raises(InputError, match=message):
        split_rows(matrix, sizes)
