"""The compiled update, with every instruction set that this machine runs."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends.contracts import AdamWProblem
from franca_fast.backends.cpu import adamw_update as compiled
from franca_fast.backends.torch import adamw_update as reference
from python_tests.backends.cpu.helpers import threads

pytestmark = pytest.mark.usefixtures("isa")

# Ends of vectors, and tasks that end within tensors.
SIZES = [1, 0, 15, 17, 33, 70001, 64, 32768]


def problem() -> AdamWProblem:
    """Tensors that begin one element into their storage, with NaN around them."""
    torch.manual_seed(0)

    def within(size):
        storage = torch.full((size + 2,), float("nan"))
        return storage[1:-1].copy_(torch.randn(size).mul(0.1))

    lists = [[within(size) for size in SIZES] for _ in range(5)]
    n = len(SIZES)
    return AdamWProblem(
        *lists[:3],
        [v.abs_() for v in lists[3]],
        [torch.tensor(float(i)) for i in range(n)],
        [None if i == 2 else teacher for i, teacher in enumerate(lists[4])],
        [1e-2 * (i + 1) for i in range(n)],
        [0.4 * (i % 2) for i in range(n)],
        [i % 3 for i in range(n)],
        torch.tensor([1.0, 0.5, 0.01]),
        *(0.9, 0.999, 1e-8, 0.98),
        torch.tensor(True),
    )


def results(module, given: AdamWProblem, n_threads: int = 1) -> list[torch.Tensor]:
    with threads(n_threads):
        module.update(given)
        module.update(given)
    lists = (given.parameters, given.exp_avgs, given.exp_avg_sqs, given.steps, given.teachers)
    return [x for tensors in lists for x in tensors if x is not None]


def test_equals_the_reference():
    for ours, expected in zip(
        results(compiled, problem()), results(reference, problem()), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_threads_do_not_change_a_bit():
    alone, together = (results(compiled, problem(), n) for n in (1, 3))
    assert all(map(torch.equal, alone, together))


def test_nothing_is_written_around_the_tensors():
    for x in results(compiled, problem()):
        if x.dim():
            storage = x.as_strided((len(x) + 2,), (1,), 0)
            assert storage[[0, -1]].isnan().all()
