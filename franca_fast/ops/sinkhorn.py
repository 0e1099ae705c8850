"""Sinkhorn-Knopp assignments of rows to prototypes, as potentials.

With logits z [N, K] and temperature T, the balanced assignment is

    Q[n, k] = exp(z[n, k] / T + a[k] + b[n])

with a prototype potential a [K] and a row potential b [N] (Cuturi 2013; SwAV, arXiv 2006.09882,
uses three iterations). One iteration is a[k] = -log sum_n exp(z/T + b), then
b[n] = -log sum_k exp(z/T + a); b comes last, so every row of Q sums to 1. The constant factors that
SwAV's loop divides by (1/N, 1/K) cancel in the result.

Only the first column pass needs a running maximum. After it every column of exp(z/T + a) sums to 1,
so the mass c[k] = sum_n exp(z/T + a + b) of a prototype lies between 1/K and N and
a[k] -= log c[k] neither overflows nor underflows in float32, whatever the (finite) logits are.
A row step gives b and c in one read of z, so three iterations read z four times and never store an
[N, K] array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from franca_fast.backends import choose
from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends.contracts import Scores, ScoresLike, SinkhornPasses, potential_dtype
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define, packed, unpacked


class SinkhornPotentials(NamedTuple):
    """Potentials of nested assignments: Q = exp(z/T + prototype + row).

    Attributes:
        prototype: For each head, a [K_i], float32 (float64 for float64 logits).
        row: For each head, b [N]; -inf for rows from n_valid on, whose assignments are 0.
    """

    prototype: tuple[Tensor, ...]
    row: tuple[Tensor, ...]


def sinkhorn_potentials(
    logits: ScoresLike,
    temperature: float,
    n_iterations: int = 3,
    *,
    n_valid: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> SinkhornPotentials:
    """Potentials of the balanced assignment of rows to prototypes, for all heads at once.

    The result is a constant for autograd: targets get no gradient.

    Args:
        logits: Scores z, [N, K] or one [N, K_i] for each nested head, in float32, bfloat16, float16
            or float64. Rows may be strided. Or `Scores`, which may be streamed.
        temperature: T, from 1e-6 to 1e6.
        n_iterations: Sinkhorn-Knopp iterations, at least 1.
        n_valid: Rows from this one on are padding and take no part. Default: all rows count.
        group: Process group over whose ranks the rows are spread; N may differ between ranks. One
            MAX and `n_iterations` SUM all-reduces, whatever the number of heads.

    Returns:
        `SinkhornPotentials` with a tuple of [K_i] and a tuple of [N] (one of each for one head).

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> z = [torch.randn(6, 8), torch.randn(6, 32)]
        >>> potentials = ff.ops.sinkhorn_potentials(z, temperature=0.05)
        >>> q = torch.exp(z[1] / 0.05 + potentials.prototype[1] + potentials.row[1][:, None])
        >>> torch.allclose(q.sum(dim=1), torch.ones(6), atol=1e-4)
        True
    """
    value = _checks.temperature("temperature", temperature)
    _checks.iterations(n_iterations)
    group_name = _checks.group_name(group)
    scores = _checks.scores("logits", logits)
    valid = _checks.valid_rows(n_valid, scores.n_rows)
    prototype, row = _potentials(*constants(scores), value, n_iterations, valid, group_name)
    return by_heads(prototype, row, scores)


def sinkhorn_knopp(
    logits: Tensor | Sequence[Tensor],
    temperature: float,
    n_iterations: int = 3,
    *,
    n_valid: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Balanced assignments Q of rows to prototypes; every valid row sums to 1.

    Arguments, errors and the handling of ranks are those of `sinkhorn_potentials`, which suffices
    where Q itself is not needed.

    Returns:
        float32 (float64 for float64 logits) assignments of the same shapes as the logits: a tensor
        for a tensor, a tuple for a sequence. Padding rows are 0.

    Example:
        >>> import torch, franca_fast as ff
        >>> q = ff.ops.sinkhorn_knopp(torch.randn(6, 32), temperature=0.05)
        >>> torch.allclose(q.sum(dim=1), torch.ones(6))
        True
    """
    value = _checks.temperature("temperature", temperature)
    _checks.iterations(n_iterations)
    group_name = _checks.group_name(group)
    scores = _checks.scores("logits", logits)
    if scores.streamed:
        raise InputError(
            "logits: streamed Scores; accepted: stored ones, as assignments are as large as those"
        )
    valid = _checks.valid_rows(n_valid, scores.n_rows)
    heads, n_heads = constants(scores)
    prototype, _ = _potentials(heads, n_heads, value, n_iterations, valid, group_name)
    assignments = _assignments(heads, value, prototype, valid)
    return assignments[0] if isinstance(logits, Tensor) else tuple(assignments)


def constants(scores: Scores) -> tuple[list[Tensor], int]:
    """Scores without gradient as operators take them: in one list, and the number of heads."""
    tensors = [t.detach() if t.requires_grad else t for t in packed(scores)]
    return tensors, len(scores.values)


def by_heads(prototype: Tensor, row: Tensor, scores: Scores) -> SinkhornPotentials:
    """Potentials [sum K] and [H, N] of all heads as those of each."""
    return SinkhornPotentials(prototype.split_with_sizes(scores.columns), row.unbind(0))


def passes_over(scores: Scores) -> SinkhornPasses:
    """The kernels that read scores of this form."""
    if scores.streamed:
        return choose("streamed_clustering", scores.values[0])
    return choose("sinkhorn", scores.values[0])


def _potentials_impl(
    tensors: list[Tensor],
    n_heads: int,
    temperature: float,
    n_iterations: int,
    n_valid: int,
    group: str | None,
) -> tuple[Tensor, Tensor]:
    scores = unpacked(tensors, n_heads)
    passes = passes_over(scores)
    if group is None:
        return passes.potentials(scores, temperature, n_iterations, n_valid)
    # A group's name is a plain string in the schema of an operator.
    ranks = _resolve_process_group(cast(Any, group))
    return balance(
        passes.column_logsumexp, passes.row_step, scores, temperature, n_iterations, n_valid, ranks
    )


def _potentials_fake(tensors: list[Tensor], n_heads: int, *_: Any) -> tuple[Tensor, Tensor]:
    row = fake_row_potentials(tensors, n_heads)
    return row.new_empty((sum(unpacked(tensors, n_heads).columns),)), row


def fake_row_potentials(tensors: list[Tensor], n_heads: int, *_: Any) -> Tensor:
    """A tensor in the form of the row potentials."""
    z = tensors[0]
    return z.new_empty((n_heads, z.shape[0]), dtype=potential_dtype(z))


def _assignments_impl(
    logits: list[Tensor], temperature: float, prototype_potentials: Tensor, n_valid: int
) -> list[Tensor]:
    passes = choose("sinkhorn", logits[0])
    return passes.assignments(Scores(logits), temperature, prototype_potentials, n_valid)


_potentials = define(
    "sinkhorn_potentials(Tensor[] scores, int n_heads, float temperature, int n_iterations, "
    "SymInt n_valid, str? group) -> (Tensor, Tensor)",
    _potentials_impl,
    _potentials_fake,
)
_assignments = define(
    "sinkhorn_assignments(Tensor[] logits, float temperature, Tensor prototype_potentials, "
    "SymInt n_valid) -> Tensor[]",
    _assignments_impl,
    lambda logits, temperature, potentials, n_valid: [
        z.new_empty(z.shape, dtype=potentials.dtype) for z in logits
    ],
)
