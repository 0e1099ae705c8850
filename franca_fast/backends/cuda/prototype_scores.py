"""Nested prototype scores on tensor cores: all heads in one launch, scaled before they are stored.

The functions are those of `backends.torch.prototype_scores`, which says what they compute.
"""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_heads
from franca_fast.backends.cuda._device import on_device_of, stream_of
from franca_fast.backends.cuda._factors import pack_factors

# Two plain matrix products for each head, which the library does well.
from franca_fast.backends.torch.prototype_scores import backward

__all__ = ["backward", "forward"]


def forward(
    features: list[Tensor], prototypes: list[Tensor], scales: list[Tensor] | None
) -> list[Tensor]:
    """scale[k] * <x[n], v[k]>, [N, K] for each head, in the dtype of the features."""
    own_scales = None if scales is None else [s.float() for s in scales]
    factors = pack_factors(features, prototypes, own_scales)
    dtype, device = features[0].dtype, features[0].device
    scores = [torch.empty(factors.n_rows, k, dtype=dtype, device=device) for k in factors.columns]
    with on_device_of(features[0]):
        _C.cuda.prototype_scores(
            factors.arguments, pack_heads(scores, "out", device).numbers, stream_of(features[0])
        )
    return scores
