"""The transformer block: attention and feed-forward with LayerScale and stochastic depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from franca_fast.errors import InputError, did_you_mean
from franca_fast.models.attention import SelfAttention
from franca_fast.models.stochastic_depth import (
    Crops,
    Subsets,
    add_to_images,
    draw_subsets,
    rows_of_images,
    seqlens_of,
    take_images,
)
from franca_fast.ops import swiglu
from franca_fast.ops._library import transforming

# Below this rate dropping images from the batch saves less than gathering them costs.
_SUBSET_THRESHOLD = 0.1


class Mlp(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x) (arXiv 2002.05202).

    The hidden width is two thirds of the plain one, rounded up to a multiple of 8, so that both
    feed-forwards have about the same number of parameters.
    """

    def __init__(self, dim: int, hidden_dim: int, *, bias: bool) -> None:
        super().__init__()
        width = (int(hidden_dim * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * width, bias=bias)
        self.w3 = nn.Linear(width, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        h = self.w12(x)
        if transforming():
            gate, value = h.chunk(2, dim=-1)
            return self.w3(F.silu(gate) * value)
        return self.w3(swiglu(h))


_FEED_FORWARDS: dict[str, type[Mlp] | type[SwiGLU]] = {
    "mlp": Mlp,
    "swiglu": SwiGLU,
    "swiglufused": SwiGLU,
}


def feed_forward(name: str, dim: int, hidden_dim: int, *, bias: bool) -> nn.Module:
    """Builds the feed-forward of a given name ("mlp", "swiglu" or "swiglufused")."""
    if name not in _FEED_FORWARDS:
        raise InputError(
            f"ffn_layer: unknown {name!r}{did_you_mean(name, _FEED_FORWARDS)}; "
            f"accepted: {', '.join(_FEED_FORWARDS)}"
        )
    return _FEED_FORWARDS[name](dim, hidden_dim, bias=bias)


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor (arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block, x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    Stochastic depth (arXiv 1603.09382) in training, at rate p:

    - images of one size, p > 0.1: the branch is computed for a random subset of max(1, B (1 - p))
      images only, and scaled by B / subset;
    - images of one size, 0 < p <= 0.1: the branch of each image is dropped with probability p, and
      the others are scaled by 1 / (1 - p);
    - packed crops, p > 0: subsets, drawn for each crop size on its own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        proj_bias: bool,
        ffn_bias: bool,
        drop_path: float,
        layerscale: float | None,
        ffn_layer: str,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        self.ls1 = LayerScale(dim, layerscale) if layerscale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = feed_forward(ffn_layer, dim, int(dim * mlp_ratio), bias=ffn_bias)
        self.ls2 = LayerScale(dim, layerscale) if layerscale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images of one size, [B, tokens, d]."""
        if self.training and self.drop_path > _SUBSET_THRESHOLD:
            crops = [(x.shape[0], x.shape[1])]
            (subsets,) = draw_subsets(crops, [self.drop_path], x.device)
            return self.forward_packed(x.flatten(0, 1), crops, subsets).view_as(x)
        for branch, scale in self._branches():
            if self.training and self.drop_path > 0.0:
                keep = torch.empty(x.shape[0], 1, 1, dtype=x.dtype, device=x.device)
                keep.bernoulli_(1.0 - self.drop_path).div_(1.0 - self.drop_path)
                x = x + scale(branch(x)) * keep
            else:
                x = _add(x, branch(x), scale)
        return x

    def forward_packed(
        self, x: Tensor, crops: Crops, subsets: Subsets, rows: Tensor | None = None
    ) -> Tensor:
        """Packed crops, [tokens, d].

        Args:
            x: tokens.
            crops: (images, tokens of each) of each crop size.
            subsets: for this block, from `draw_subsets`.
            rows: of the tokens that are asked for, int64 [n], none of them twice; None for all.

        Returns:
            [tokens, d], or with `rows` the [n, d] of these alone: what only the others need is
            left out, which is all but their keys and values.
        """
        if rows is not None:
            return self._forward_rows(x, crops, subsets, rows)
        for (branch, scale), subset in zip(self._branches(), subsets, strict=True):
            if subset is None:
                x = _add(x, branch(x, seqlens_of(crops)), scale)
                continue
            taken = take_images(x, subset)
            residual = scale(branch(taken, seqlens_of(subset.kept_crops)))
            x = add_to_images(x, taken, residual, subset)
        return x

    def _forward_rows(self, x: Tensor, crops: Crops, subsets: Subsets, rows: Tensor) -> Tensor:
        of_attention, of_feed_forward = subsets
        own = x.index_select(0, rows)
        if of_attention is None:
            own = _add(own, self._attention(x, seqlens_of(crops), rows), self.ls1)
        else:
            places, factors = rows_of_images(of_attention, rows, x.dtype)
            taken, seqlens = take_images(x, of_attention), seqlens_of(of_attention.kept_crops)
            own = torch.addcmul(own, self.ls1(self._attention(taken, seqlens, places)), factors)
        branch = self._feed_forward(own)
        if of_feed_forward is None:
            return _add(own, branch, self.ls2)
        # Which rows are left out only the device knows: to compute them too costs less than to ask.
        _, factors = rows_of_images(of_feed_forward, rows, x.dtype)
        return torch.addcmul(own, self.ls2(branch), factors)

    def _branches(self) -> tuple[tuple[Callable[..., Tensor], nn.Module], ...]:
        return (self._attention, self.ls1), (self._feed_forward, self.ls2)

    def _attention(
        self, x: Tensor, seqlens: Sequence[int] | None = None, rows: Tensor | None = None
    ) -> Tensor:
        return self.attn(self.norm1(x), seqlens, rows)

    def _feed_forward(self, x: Tensor, seqlens: Sequence[int] | None = None) -> Tensor:
        return self.mlp(self.norm2(x))


def _add(x: Tensor, branch: Tensor, scale: nn.Module) -> Tensor:
    """Adds scale(branch) to x, with LayerScale in one pass."""
    return torch.addcmul(x, branch, scale.gamma) if isinstance(scale, LayerScale) else x + branch
