"""The operators in plain PyTorch: the reference, available wherever PyTorch runs."""

from __future__ import annotations

import torch


def unavailable(backend: str, operator: str, tensor: torch.Tensor) -> str | None:
    """Why this backend cannot run: never."""
    return None
