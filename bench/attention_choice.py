"""Measures on this machine's GPU which attention kernels are faster, and writes the table's entry.

Usage: python bench/attention_choice.py [--out FILE]

Times forward and backward of our kernels and of PyTorch's for one length of each bucket of
franca_fast/backends/attention_choice.json, and replaces the entry of this card's capability in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import franca_fast as ff  # noqa: E402
from franca_fast.backends import registry  # noqa: E402
from franca_fast.backends.attention_choice import COMMITTED, OWN, TORCH, read_table  # noqa: E402
from franca_fast.files import atomic_path  # noqa: E402

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
            print(
                f"head_dim {head_dim}, length {length}: ours {ours:.3f} ms, torch {theirs:.3f} ms"
            )
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
    """Returns 0, or 2 without a GPU or without kernels of ours for it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=COMMITTED)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device is visible to PyTorch; nothing was measured")
        return 2
    tensor = torch.empty(0, dtype=torch.bfloat16, device="cuda")
    own = registry.available("varlen_attention", tensor)[0]
    if own == "torch":
        print("neither the compiled core nor triton offers attention here; nothing was measured")
        return 2
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    entry = measured(milliseconds, own)
    write_entry(arguments.out, capability, torch.cuda.get_device_name(), entry)
    print(f"wrote the entry of {capability} to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
