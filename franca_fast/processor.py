"""What the processor of a device computes fast."""

from __future__ import annotations

from pathlib import Path

import torch

# Instructions that multiply bf16 numbers, as /proc/cpuinfo names them.
_BF16_INSTRUCTIONS = {"amx_bf16", "avx512_bf16"}


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products take clearly less time in bfloat16 than in float32.

    It depends on the machine alone, not on a measurement.

    Example:
        >>> import torch
        >>> fast_bfloat16(torch.device("meta"))
        False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and not _BF16_INSTRUCTIONS.isdisjoint(instructions())


def instructions() -> set[str]:
    """The names that Linux has for what this machine's CPU can do; empty on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
