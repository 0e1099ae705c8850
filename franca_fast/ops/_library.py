"""Where the operators become PyTorch's: `torch.ops.franca_fast`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from franca_fast.backends.contracts import Scores

_library = torch.library.Library("franca_fast", "DEF")


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Defines `franca_fast::<schema>` and returns the callable operator.

    Args:
        schema: Name, arguments and results in PyTorch's schema language.
        implementation: Runs on plain tensors of any device.
        fake: Gives outputs of the right shape and dtype without computing.
        backward: Autograd formula, which cannot be differentiated again (that is an error and not
            a wrong result); without it the results carry no gradient.
        setup_context: Saves what `backward` needs.
    """
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"franca_fast::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"franca_fast::{name}", _once(name, backward), setup_context=setup_context, lib=_library
        )
    return getattr(torch.ops.franca_fast, name).default


def packed(scores: Scores) -> list[Tensor]:
    """Scores in one list, of which the dispatcher is faster than of three."""
    return [*scores.values, *scores.prototypes, *scores.scales]


def unpacked(tensors: Sequence[Tensor], n_heads: int) -> Scores:
    """Inverse of `packed`."""
    n = n_heads
    if len(tensors) == n:
        return Scores(tensors)
    return Scores(tensors[:n], tensors[n : 2 * n], tensors[2 * n :])


def _once(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """The formula, with gradients of which a gradient is an error.

    Without this, PyTorch takes a gradient's gradient to be zero where the formula calls operators
    that have none.
    """
    message = f"franca_fast.ops: the gradient of {name} cannot be differentiated again".encode()

    def guarded(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        return _refusing(results, message)

    return guarded


def _refusing(results: Any, message: bytes) -> Any:
    if isinstance(results, (list, tuple)):
        return type(results)(_refusing(result, message) for result in results)
    if results is None:
        return None
    return torch._C._functions.DelayedError(message, 1)(results.detach().requires_grad_())
