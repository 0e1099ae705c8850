"""What the processor of a device computes fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from franca_fast import processor
from franca_fast.processor import fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx512f amx_bf16", True),
        ("fpu avx512_bf16", True),
        ("fpu avx512f", False),
        ("fpu avx512_bf16_of_another_kind", False),
        (None, False),
    ],
)
def test_bfloat16_is_fast_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str | None, fast: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n\n")
    monkeypatch.setattr(processor, "Path", lambda path: cpuinfo)
    assert fast_bfloat16(CPU) is fast


@pytest.mark.parametrize("supported", [True, False])
def test_gpus_say_it_themselves(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert fast_bfloat16(torch.device("cuda")) is supported
