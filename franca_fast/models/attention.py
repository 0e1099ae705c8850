"""Multi-head self-attention over images of one size or over packed crops of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from franca_fast.ops import varlen_attention_qkv


class SelfAttention(nn.Module):
    """Self-attention with one qkv projection.

    This is the one place that knows which attention runs: images of one size are a dense batch and
    go to PyTorch's scaled_dot_product_attention (which export and compilation understand), packed
    crops go to `varlen_attention_qkv`.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, proj_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(
        self, x: Tensor, seqlens: Sequence[int] | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Attends within each image.

        Args:
            x: [B, tokens, d], or packed [tokens, d] with `seqlens`.
            seqlens: Tokens of each packed image.
            rows: Packed tokens whose outputs are asked for, int64 [n]; None for all.

        Returns:
            Tensor of the shape of `x`, or [n, d].
        """
        qkv = self.qkv(x)
        qkv = qkv.view(*x.shape[:-1], 3, self.num_heads, -1)
        if seqlens is not None:
            attended = varlen_attention_qkv(qkv, seqlens).flatten(-2)
            return self.proj(attended if rows is None else attended.index_select(0, rows))
        q, k, v = qkv.unbind(-3)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        return self.proj(out.transpose(1, 2).flatten(-2))
