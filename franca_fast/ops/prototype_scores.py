"""Nested prototype scores: the scores of features against the prototypes of every head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.backends.contracts import Scores
from franca_fast.ops import _checks
from franca_fast.ops._library import define


def prototype_scores(
    features: Sequence[Tensor],
    prototypes: Sequence[Tensor],
    *,
    scales: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Scores of features against prototypes for every nested head, differentiable in all arguments.

    scores[i][n, k] = scales[i][k] * <features[i][n], prototypes[i][k]>

    With scales = g / |v| this is a weight-normalised linear layer (arXiv 1602.07868) that never
    writes a normalised copy of its weights. Under autocast the features and prototypes are cast to
    the autocast dtype, the scales stay in float32.

    Args:
        features: For each head, [N, C_i].
        prototypes: For each head, [K_i, C_i], of the dtype of the features.
        scales: For each head, [K_i]. Default: 1.

    Returns:
        For each head, scores [N, K_i] in the dtype of the features.

    Raises:
        InputError: Naming the argument that is wrong.

    Example:
        >>> import torch, franca_fast as ff
        >>> x, v = [torch.randn(6, 16)] * 2, [torch.randn(8, 16), torch.randn(32, 16)]
        >>> [tuple(s.shape) for s in ff.ops.prototype_scores(x, v)]
        [(6, 8), (6, 32)]
    """
    x = _checks.matrices_of_heads("features", features)
    v = _checks.matrices_of_heads("prototypes", prototypes)
    device = x[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, v = [m.to(dtype) for m in x], [m.to(dtype) for m in v]
    _checks.same_columns("prototypes", v, "features", x)
    _checks.same_kind("prototypes", v[0], "features", x[0])
    factors = [] if scales is None else _checks.as_tensors("scales", scales, "a tensor [K_i]")
    if scales is not None:
        _checks.scales("scales", factors, v)
    return tuple(_scores(x, v, factors))


def _forward_impl(x: list[Tensor], v: list[Tensor], scales: list[Tensor]) -> list[Tensor]:
    return choose("prototype_scores", x[0]).forward(Scores(x, v, scales))


def _backward_impl(
    grads: list[Tensor], x: list[Tensor], v: list[Tensor], scales: list[Tensor]
) -> Scores:
    return choose("prototype_scores", x[0]).backward(Scores(x, v, scales), grads)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, v, scales = inputs
    ctx.n_heads = len(x)
    ctx.save_for_backward(*x, *v, *scales)


def _autograd_backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    saved, n = ctx.saved_tensors, ctx.n_heads
    return _scores_backward(list(grads), saved[:n], saved[n : 2 * n], saved[2 * n :])


_scores_backward = define(
    "prototype_scores_backward(Tensor[] grads, Tensor[] features, Tensor[] prototypes, "
    "Tensor[] scales) -> (Tensor[], Tensor[], Tensor[])",
    _backward_impl,
    lambda grads, *scores: Scores(*([m.new_empty(m.shape) for m in part] for part in scores)),
)
_scores = define(
    "prototype_scores(Tensor[] features, Tensor[] prototypes, Tensor[] scales) -> Tensor[]",
    _forward_impl,
    lambda x, v, scales: [a.new_empty((a.shape[0], b.shape[0])) for a, b in zip(x, v, strict=True)],
    backward=_autograd_backward,
    setup_context=_setup_context,
)
