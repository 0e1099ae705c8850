"""Packed attention in the model, against that of separate images."""

from __future__ import annotations

import torch

from franca_fast.models.attention import SelfAttention

CROPS = [(4, 17), (6, 5)]  # images and tokens of each


def test_packed_equals_separate_images():
    attention = SelfAttention(128, 2, qkv_bias=True, proj_bias=True)
    crops = [torch.randn(images, tokens, 128) for images, tokens in CROPS]
    seqlens = [tokens for images, tokens in CROPS for _ in range(images)]
    packed = attention(torch.cat([x.flatten(0, 1) for x in crops]), seqlens)
    separate = torch.cat([attention(x).flatten(0, 1) for x in crops])
    torch.testing.assert_close(packed, separate)
