"""SwiGLU's product (arXiv 2002.05202): what stands between the two layers of a feed-forward.

Of each row h = [g, v], gate and value, with the sigmoid s(g) = 1 / (1 + exp(-g)),

    y = silu(g) v                        silu(g) = g s(g)
    dg = dy v s(g) (1 + g (1 - s(g)))    dv = dy silu(g)

The gradient is one tensor, written in one pass, and nothing but h is kept for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from franca_fast.backends import choose
from franca_fast.errors import InputError
from franca_fast.ops import _checks
from franca_fast.ops._library import define


def swiglu(h: Tensor) -> Tensor:
    """silu(gate) * value of the two halves of each row, differentiable.

    Far below 0 silu is 0. Of an infinite gate the gradient is NaN, and of a gate of -inf silu as
    well, as with PyTorch's silu.

    Args:
        h: [..., 2 w], the gates before the values, as one projection gives both. Read in place
            where rows are equally far apart and their elements adjacent.

    Returns:
        [..., w], contiguous, in the dtype of h. bfloat16 and float16 are rounded once, by the
        compiled core and by Triton.

    Raises:
        InputError: If h is anything else.

    Example:
        >>> import torch, franca_fast as ff
        >>> ff.ops.swiglu(torch.tensor([[0.0, 50.0, 3.0, 2.0]]))
        tensor([[  0., 100.]])
    """
    _check(h)
    product: Tensor = _swiglu(h)
    return product


def _check(h: Any) -> None:
    accepted = "a dense tensor [..., 2 w], w >= 1"
    _checks.as_tensor("h", h, accepted)
    if h.layout is not torch.strided or not h.dim() or not h.shape[-1] or h.shape[-1] % 2:
        raise InputError(f"h: {_checks.described(h)}; accepted: {accepted}")
    if h.dtype not in _checks.FLOATING:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _checks.FLOATING)
        raise InputError(f"h: dtype {h.dtype}; accepted: {accepted}")


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor]:
    return (_swiglu_backward(grad, *ctx.saved_tensors),)


_swiglu_backward = define(
    "swiglu_backward(Tensor grad, Tensor h) -> Tensor",
    lambda grad, h: choose("swiglu", h).backward(grad, h),
    lambda grad, h: h.new_empty(h.shape),
)
_swiglu = define(
    "swiglu(Tensor h) -> Tensor",
    lambda h: choose("swiglu", h).forward(h),
    lambda h: h.new_empty((*h.shape[:-1], h.shape[-1] // 2)),
    backward=_autograd_backward,
    setup_context=_setup_context,
)
