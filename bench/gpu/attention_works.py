"""What is timed of attention: packed crops, PyTorch's kernels, FlashAttention-2."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import franca_fast as ff
from bench.gpu.case import Call, Case, Setting

HEADS, HEAD_DIM = 16, 64
Attention = Callable[[Tensor], Tensor]  # [tokens, 3, heads, head_dim] -> [tokens, heads, head_dim]


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Forward alone, and forward with backward."""
    crops = setting.crops
    tokens = sum(images * length for images, length in crops)
    pairs = sum(images * length**2 for images, length in crops)
    name = " + ".join(f"{images}x{length}" for images, length in crops)
    others = baselines(crops, setting)
    own = [name for name in setting.backends("varlen_attention") if name != "torch"]
    seqlens = [length for images, length in crops for _ in range(images)]

    def packed(qkv: Tensor) -> Tensor:
        return ff.ops.varlen_attention_qkv(qkv, seqlens)

    def make() -> Tensor:
        shape = (tokens, 3, HEADS, HEAD_DIM)
        return torch.randn(shape, dtype=torch.bfloat16).requires_grad_()

    packed_bytes = 2 * tokens * HEADS * HEAD_DIM
    forward_operations = 4 * pairs * HEADS * HEAD_DIM
    for work, passes in (("fwd", forward), ("fwd+bwd", forward_backward)):
        backward = work != "fwd"
        variants = {backend: passes(packed) for backend in own}
        variants |= {kernel: passes(call) for kernel, call in others.items()}
        yield Case(
            f"attention {work} {name}",
            make,
            variants,
            packed_bytes * (4 + (8 if backward else 0)),
            forward_operations * (7 if backward else 2) // 2,
        )


def forward(attention: Attention) -> Call:
    """The attention as training runs it, for the output alone."""
    return lambda qkv: attention(qkv)


def forward_backward(attention: Attention) -> Call:
    """Output and gradient."""

    def run(qkv: Tensor) -> Any:
        out = attention(qkv)
        return torch.autograd.grad(out, qkv, out.detach())

    return run


def baselines(crops: tuple[tuple[int, int], ...], setting: Setting) -> dict[str, Attention]:
    """What else computes it here, PyTorch's dense kernel for each crop size first."""

    def sdpa(qkv: Tensor) -> Tensor:
        parts = qkv.split([images * length for images, length in crops])
        outputs = []
        for part, (images, length) in zip(parts, crops, strict=True):
            q, k, v = part.unflatten(0, (images, length)).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)

    found: dict[str, Attention] = {"sdpa": sdpa}
    if setting.device.type != "cuda":
        return found
    seqlens = [length for images, length in crops for _ in range(images)]
    longest = max(seqlens)
    ends = torch.tensor([0, *seqlens], dtype=torch.int32, device=setting.device)
    ends = ends.cumsum(0, dtype=torch.int32)
    if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        found["varlen_attn"] = lambda qkv: varlen_attn(*qkv.unbind(1), ends, ends, longest, longest)
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_qkvpacked_func

        found["flash_attn"] = lambda qkv: flash_attn_varlen_qkvpacked_func(qkv, ends, longest)
    return found
