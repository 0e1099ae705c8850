"""The operators in plain PyTorch: the reference, available wherever PyTorch runs."""

from __future__ import annotations

from torch import Tensor


def unavailable(operator: str, tensor: Tensor) -> str | None:
    """Why this backend cannot run: never."""
    return None
