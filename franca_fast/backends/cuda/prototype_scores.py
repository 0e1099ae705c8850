"""Nested prototype scores on tensor cores, all heads in one launch, scaled before being stored."""

from __future__ import annotations

from torch import Tensor

from franca_fast import _C
from franca_fast.backends._core import pack_heads
from franca_fast.backends.contracts import Scores
from franca_fast.backends.cuda._device import on_device_of, stream_of
from franca_fast.backends.cuda._streamed_scores import pack_streamed

# Two plain matrix products for each head, which the library does well.
from franca_fast.backends.torch.prototype_scores import backward

__all__ = ["backward", "forward"]


def forward(scores: Scores) -> list[Tensor]:
    packed = pack_streamed(scores._replace(scales=[s.float() for s in scores.scales]))
    like = scores.values[0]
    out = [like.new_empty((packed.n_rows, k)) for k in packed.columns]
    with on_device_of(like):
        places = pack_heads(out, "out", like.device).numbers
        _C.cuda.prototype_scores(packed.arguments, places, stream_of(like))
    return out
