"""What the tests of the compiled core share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Results = dict[str, Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs a block with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills everything that torch.empty gives with NaN, or 255 in bytes."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before)


def largest_error(values: Tensor, exact: Tensor) -> float:
    """Largest absolute error; infinities must be where they are expected."""
    finite = torch.isfinite(exact)
    assert torch.equal(values.double()[~finite], exact[~finite])
    return (values.double() - exact)[finite].abs().max().item() if finite.any() else 0.0


def assert_as_exact(results: Sequence[tuple[Results, Results, Results]]) -> None:
    """Checks that errors are at most twice those of torch.

    Args:
        results: For several random inputs: ours, torch's in the same precision, and the exact one,
            each a tensor for each name. One input would not do: torch's error may be nought.
    """
    for name in results[0][0]:
        triples = [(ours[name], by_torch[name], exact[name]) for ours, by_torch, exact in results]
        ours = max(largest_error(values, exact) for values, _, exact in triples)
        by_torch = max(largest_error(values, exact) for _, values, exact in triples)
        size = max(exact[torch.isfinite(exact)].abs().amax().item() for _, _, exact in triples)
        ulp = torch.finfo(triples[0][0].dtype).eps * size
        assert ours <= max(2 * by_torch, ulp), name


def misaligned(tensor: Tensor) -> Tensor:
    """The same matrix one element into its storage, with a gap between rows."""
    rows, columns = tensor.shape
    storage = torch.full((rows * (columns + 3) + 1,), float("nan"), dtype=tensor.dtype)
    view = storage.as_strided((rows, columns), (columns + 3, 1), 1)
    return view.copy_(tensor)
