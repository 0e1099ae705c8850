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

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from franca_fast.backends import choose
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define
from franca_fast.ops.factored_scores import FactoredScores, lists


class SinkhornPotentials(NamedTuple):
    """Potentials of nested assignments: Q = exp(z/T + prototype + row).

    Attributes:
        prototype: For each head, a [K_i], float32 (float64 for float64 logits).
        row: For each head, b [N]; -inf for rows from n_valid on, whose assignments are 0.
    """

    prototype: tuple[Tensor, ...]
    row: tuple[Tensor, ...]


def sinkhorn_potentials(
    logits: Tensor | Sequence[Tensor] | FactoredScores,
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
            or float64. Rows may be strided. `FactoredScores` are recomputed, never stored.
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
    if isinstance(logits, FactoredScores):
        x, v, scales = _constants(logits)
        valid = _checks.valid_rows(n_valid, logits.n_rows)
        prototype, row = _factored_potentials(x, v, scales, value, n_iterations, valid, group_name)
        return SinkhornPotentials(prototype.split([m.shape[0] for m in v]), row.unbind(0))
    heads = _heads(logits)
    valid = _checks.valid_rows(n_valid, heads[0].shape[0])
    prototype, row = _potentials(heads, value, n_iterations, valid, group_name)
    return SinkhornPotentials(prototype.split([z.shape[1] for z in heads]), row.unbind(0))


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
    heads = _heads(logits)
    value = _checks.temperature("temperature", temperature)
    valid = _checks.valid_rows(n_valid, heads[0].shape[0])
    group_name = _checks.group_name(group)
    prototype, _ = _potentials(heads, value, _checks.iterations(n_iterations), valid, group_name)
    assignments = _assignments(heads, value, prototype, valid)
    return assignments[0] if isinstance(logits, Tensor) else tuple(assignments)


def row_potentials(
    logits: Tensor | Sequence[Tensor] | FactoredScores,
    temperature: float,
    prototype: Sequence[Tensor],
    *,
    n_valid: int | None = None,
) -> SinkhornPotentials:
    """Potentials of a plain row softmax with given prototype potentials.

    b[n] = -log sum_k exp(z/T + a[k]). With a = -center / T this is DINO's centering as potentials,
    so that one loss serves both kinds of targets.

    Args:
        logits: As in `sinkhorn_potentials`.
        temperature: T, from 1e-6 to 1e6.
        prototype: For each head, a [K_i].
        n_valid: As in `sinkhorn_potentials`.

    Returns:
        `SinkhornPotentials` with the given prototype potentials.
    """
    value = _checks.temperature("temperature", temperature)
    given = _checks.as_tensors("prototype", prototype, "a tensor [K_i]")
    if isinstance(logits, FactoredScores):
        x, v, scales = _constants(logits)
        packed = _packed(given, x[0], [m.shape[0] for m in v])
        valid = _checks.valid_rows(n_valid, logits.n_rows)
        row = _factored_row_potentials(x, v, scales, value, packed, valid)
    else:
        heads = _heads(logits)
        packed = _packed(given, heads[0], [z.shape[1] for z in heads])
        valid = _checks.valid_rows(n_valid, heads[0].shape[0])
        row = _row_potentials(heads, value, packed, valid)
    return SinkhornPotentials(tuple(given), row.unbind(0))


def _packed(prototype: list[Tensor], scores: Tensor, columns: list[int]) -> Tensor:
    """Prototype potentials of all heads in one vector."""
    _checks.potentials("prototype", prototype, [(k,) for k in columns], scores)
    return torch.cat(prototype)


def _constants(scores: FactoredScores) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    x, v, scales = ([t.detach() for t in factor] for factor in lists("logits", scores))
    return x, v, scales


def _heads(logits: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(logits, FactoredScores):
        raise InputError(
            "logits: FactoredScores; accepted: logits, as assignments are as large as those"
        )
    heads = _checks.as_matrices("logits", logits)
    _checks.same_rows("logits", heads)
    return [z.detach() for z in heads]


def _balance(
    column_logsumexp: Callable[[], tuple[Tensor, Tensor]],
    row_step: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]],
    n_iterations: int,
    group: str | None,
) -> tuple[Tensor, Tensor]:
    """The iteration, given the two passes over the scores; collectives go between the passes.

    All in place: beside few rows, every vector over all prototypes counts.
    """
    # A group's name is a plain string in the schema of an operator.
    ranks = None if group is None else _resolve_process_group(cast(Any, group))
    maximum, total = column_logsumexp()
    if ranks is not None:
        own = maximum.clone()
        dist.all_reduce(maximum, dist.ReduceOp.MAX, ranks)
        # A rank without rows has maximum -inf and total 0; -inf - -inf must not become nan.
        total.mul_(own.sub_(maximum).nan_to_num_(nan=0.0).exp_())
        del own
        dist.all_reduce(total, dist.ReduceOp.SUM, ranks)
    # Without any row on any rank there is nothing to balance: the logarithms are -inf.
    prototype = total.log_().add_(maximum).neg_().nan_to_num_(math.nan, posinf=0.0)
    del maximum, total
    for _ in range(n_iterations - 1):
        _, mass = row_step(prototype, True)
        assert mass is not None
        if ranks is not None:
            dist.all_reduce(mass, dist.ReduceOp.SUM, ranks)
        prototype.sub_(mass.log_().nan_to_num_(math.nan, neginf=0.0))
        del mass  # not to be held while the next one is made
    row, _ = row_step(prototype, False)
    return prototype, row


def _potentials_impl(
    logits: list[Tensor], temperature: float, n_iterations: int, n_valid: int, group: str | None
) -> tuple[Tensor, Tensor]:
    passes = choose("sinkhorn", logits[0])
    if group is None and hasattr(passes, "potentials"):
        # Some backends join the passes of a problem that no other rank takes part in.
        potentials = passes.potentials(logits, temperature, n_iterations, n_valid)
        if potentials is not None:
            return potentials
    return _balance(
        lambda: passes.column_logsumexp(logits, temperature, n_valid),
        lambda a, with_mass: passes.row_step(logits, temperature, a, n_valid, with_mass),
        n_iterations,
        group,
    )


def _factored_potentials_impl(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor],
    temperature: float,
    n_iterations: int,
    n_valid: int,
    group: str | None,
) -> tuple[Tensor, Tensor]:
    passes = choose("streamed_clustering", features[0])
    scores = (features, prototypes, scales)
    return _balance(
        lambda: passes.column_logsumexp(*scores, temperature, n_valid),
        lambda a, with_mass: passes.row_step(*scores, temperature, a, n_valid, with_mass),
        n_iterations,
        group,
    )


def _assignments_impl(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int
) -> list[Tensor]:
    return choose("sinkhorn", logits[0]).assignments(logits, temperature, prototype, n_valid)


def _row_potentials_impl(
    logits: list[Tensor], temperature: float, prototype: Tensor, n_valid: int
) -> Tensor:
    passes = choose("sinkhorn", logits[0])
    row, _ = passes.row_step(logits, temperature, prototype, n_valid, False)
    return row


def _factored_row_potentials_impl(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor],
    temperature: float,
    prototype: Tensor,
    n_valid: int,
) -> Tensor:
    passes = choose("streamed_clustering", features[0])
    row, _ = passes.row_step(features, prototypes, scales, temperature, prototype, n_valid, False)
    return row


def _fake_row(logits: list[Tensor]) -> Tensor:
    z = logits[0]
    return z.new_empty((len(logits), z.shape[0]), dtype=_checks.potential_dtype(z))


def _fake_potentials(rows: list[Tensor], n_prototypes: int) -> tuple[Tensor, Tensor]:
    row = _fake_row(rows)
    return row.new_empty((n_prototypes,)), row


_potentials = define(
    "sinkhorn_potentials(Tensor[] logits, float temperature, int n_iterations, SymInt n_valid, "
    "str? group) -> (Tensor, Tensor)",
    _potentials_impl,
    lambda logits, *_: _fake_potentials(logits, sum(z.shape[1] for z in logits)),
)
_factored_potentials = define(
    "factored_sinkhorn_potentials(Tensor[] features, Tensor[] prototypes, Tensor[] scales, "
    "float temperature, int n_iterations, SymInt n_valid, str? group) -> (Tensor, Tensor)",
    _factored_potentials_impl,
    lambda features, prototypes, *_: _fake_potentials(
        features, sum(v.shape[0] for v in prototypes)
    ),
)
_assignments = define(
    "sinkhorn_assignments(Tensor[] logits, float temperature, Tensor prototype, SymInt n_valid) "
    "-> Tensor[]",
    _assignments_impl,
    lambda logits, temperature, prototype, n_valid: [
        z.new_empty(z.shape, dtype=prototype.dtype) for z in logits
    ],
)
_row_potentials = define(
    "row_potentials(Tensor[] logits, float temperature, Tensor prototype, SymInt n_valid) "
    "-> Tensor",
    _row_potentials_impl,
    lambda logits, temperature, prototype, n_valid: _fake_row(logits),
)
_factored_row_potentials = define(
    "factored_row_potentials(Tensor[] features, Tensor[] prototypes, Tensor[] scales, "
    "float temperature, Tensor prototype, SymInt n_valid) -> Tensor",
    _factored_row_potentials_impl,
    lambda features, *_: _fake_row(features),
)
