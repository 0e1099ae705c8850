"""The torch.library namespace of the operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
        backward: Autograd formula; without it the results carry no gradient.
        setup_context: Saves what `backward` needs.
    """
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"franca_fast::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"franca_fast::{name}", backward, setup_context=setup_context, lib=_library
        )
    return getattr(torch.ops.franca_fast, name).default
