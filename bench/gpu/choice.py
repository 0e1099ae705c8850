"""Part: which attention kernels are faster on this card; writes the table's entry.

python -m bench.gpu.choice [--out FILE]

Times forward and backward of our kernels and of PyTorch's for one length of each bucket of
franca_fast/backends/attention_choice.json, and replaces the entry of this card's capability in it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import franca_fast as ff
from franca_fast.backends import registry
from franca_fast.backends.attention_choice import COMMITTED, OWN, TORCH, read_table
from franca_fast.files import atomic_path

from . import record
from .options import parse

# A length of each bucket: ViT/14 at 98, 168, 224, 364 and 518 pixels.
LENGTHS = (50, 145, 257, 677, 1370)
HEADS, TOKENS = 16, 16384
ROUNDS = 30


def milliseconds(backend: str, head_dim: int, length: int) -> float:
    """Median time of forward and backward on one backend."""
    seqlens = [length] * max(1, TOKENS // length)
    shape = (sum(seqlens), 3, HEADS, head_dim)
    qkv = [
        torch.randn(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        for _ in range(3)
    ]
    times = []
    with ff.use_backend(backend):
        for i in range(ROUNDS + 3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            out = ff.ops.varlen_attention_qkv(qkv[i % 3], seqlens)
            torch.autograd.grad(out, qkv[i % 3], out.detach())
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def measured(time_of: Callable[[str, int, int], float], own: str) -> dict[str, list[str]]:
    """The faster kernels by head_dim and bucket; `time_of` is given backend, head_dim, length."""
    entry: dict[str, list[str]] = {}
    for head_dim in (64, 128):
        entry[str(head_dim)] = []
        for length in LENGTHS:
            ours, theirs = (time_of(backend, head_dim, length) for backend in (own, "torch"))
            entry[str(head_dim)].append(OWN if ours < theirs else TORCH)
            times = {own: ours, "torch": theirs}
            name = f"attention, head_dim {head_dim}, length {length}"
            record.add(choice=name, ms=times, fastest=min(times, key=times.__getitem__))
    return entry


def write_entry(path: Path, capability: str, card: str, entry: dict[str, list[str]]) -> None:
    """Replaces the entry of one capability and says where it comes from."""
    table = read_table(path if path.exists() else COMMITTED)
    note = f"{capability} measured on {card}, torch {torch.__version__}."
    kept = [s for s in table.origin.split("\n") if not s.startswith(f"{capability} measured")]
    content = table._asdict() | {
        "origin": "\n".join([*kept, note]),
        "kernels": table.kernels | {capability: entry},
    }
    with atomic_path(path) as part:
        Path(part).write_text(json.dumps(content, indent=2) + "\n")


def main() -> int:
    """Returns 0, or 1 without kernels of ours for this card."""
    options = parse(__doc__, out={"type": Path, "default": COMMITTED})
    if options.device == "cpu":
        record.add(note="nothing is chosen in a dry run")
        return 0
    tensor = torch.empty(0, dtype=torch.bfloat16, device="cuda")
    own = registry.available("varlen_attention", tensor)[0]
    if own == "torch":
        print("neither the compiled core nor triton offers attention here; nothing was measured")
        return 1
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    entry = measured(milliseconds, own)
    write_entry(options.out, capability, torch.cuda.get_device_name(), entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
