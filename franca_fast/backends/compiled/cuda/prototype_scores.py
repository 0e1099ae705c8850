"""Nested prototype scores on tensor cores: all heads in one launch, scaled before they are stored.

The functions are those of `backends.torch.prototype_scores`, which says what they compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends.compiled.views import pack_heads

# Two plain matrix products for each head, which the library does well.
from franca_fast.backends.torch.prototype_scores import backward

from ._device import on_device_of, stream_of, workspace
from ._factors import pack_factors

__all__ = ["backward", "forward", "forward_with_logsumexp", "logsumexp"]


def forward(
    features: list[Tensor], prototypes: list[Tensor], scales: list[Tensor] | None
) -> list[Tensor]:
    """scale[k] * <x[n], v[k]>, [N, K] for each head, in the dtype of the features."""
    scores, _ = _run(features, prototypes, scales, None, True)
    return scores


def forward_with_logsumexp(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor] | None,
    temperature: float,
) -> tuple[list[Tensor], Tensor]:
    """The scores z as `forward` gives them and, in the same pass, log sum_k exp(z/T), [H, N]."""
    scores, total = _run(features, prototypes, scales, temperature, True)
    assert total is not None
    return scores, total


def logsumexp(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor] | None,
    temperature: float,
) -> Tensor:
    """Gives log sum_k exp(z/T) of scores that are neither stored nor rounded, [H, N] float32."""
    _, total = _run(features, prototypes, scales, temperature, False)
    assert total is not None
    return total


def _run(
    features: list[Tensor],
    prototypes: list[Tensor],
    scales: list[Tensor] | None,
    temperature: float | None,
    store: bool,
) -> tuple[list[Tensor], Tensor | None]:
    own_scales = None if scales is None else [s.float() for s in scales]
    factors = pack_factors(features, prototypes, own_scales)
    dtype, device = features[0].dtype, features[0].device
    scores: list[Tensor] = []
    if store:
        scores = [
            torch.empty(factors.n_rows, k, dtype=dtype, device=device) for k in factors.columns
        ]
    total = None
    if temperature is not None:
        shape = (len(features), factors.n_rows)
        total = torch.empty(shape, dtype=torch.float32, device=device)
    with on_device_of(features[0]):
        n_bytes = _C.cuda.prototype_scores_workspace(factors.arguments, total is not None)
        memory = workspace(n_bytes, device)
        _C.cuda.prototype_scores(
            factors.arguments,
            pack_heads(scores, "out", device).numbers if store else [],
            1.0 if temperature is None else temperature,
            0 if total is None else total.data_ptr(),
            memory.data_ptr(),
            n_bytes,
            stream_of(features[0]),
        )
    return scores, total
