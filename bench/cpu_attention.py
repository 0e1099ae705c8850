"""Times packed attention on CPU beside a padded batch and a loop over the sequences.

Usage: python bench/cpu_attention.py [--images N] [--out FOLDER]

Forward and backward of 2 N crops of 257 tokens and 8 N of 50, 6 heads of 64, in float32 and
bfloat16. Prints a table and writes cpu_attention.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import franca_fast as ff  # noqa: E402

HEADS, HEAD_DIM = 6, 64
ROUNDS = 7


def padded(qkv: Tensor, seqlens: list[int]) -> Tensor:
    """One dense batch of the longest length with a mask."""
    batch = torch.nn.utils.rnn.pad_sequence(qkv.split(seqlens), batch_first=True)
    q, k, v = batch.permute(2, 0, 3, 1, 4)
    lengths = torch.tensor(seqlens)
    mask = torch.arange(batch.shape[1]) < lengths.unsqueeze(1)  # [sequences, keys]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
    return out.transpose(1, 2)[mask]


def one_by_one(qkv: Tensor, seqlens: list[int]) -> Tensor:
    """A call for each sequence."""
    outputs = []
    for part in qkv.split(seqlens):
        q, k, v = part.permute(1, 2, 0, 3).unsqueeze(1)
        outputs.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return torch.cat(outputs)


VARIANTS = {
    "padded batch": padded,
    "one by one": one_by_one,
    "packed (ours)": ff.ops.varlen_attention_qkv,
}


def milliseconds(dtype: torch.dtype, seqlens: list[int]) -> dict[str, float]:
    """Median time of each variant; they take turns."""
    qkv = torch.randn(sum(seqlens), 3, HEADS, HEAD_DIM).to(dtype).requires_grad_()
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS + 1):
        for name, call in VARIANTS.items():
            start = time.perf_counter()
            out = call(qkv, seqlens)
            torch.autograd.grad(out, qkv, out.detach())
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    seqlens = [257] * (2 * arguments.images) + [50] * (8 * arguments.images)
    report = {
        "command": f"python bench/cpu_attention.py --images {arguments.images}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "milliseconds": {
            str(dtype).removeprefix("torch."): milliseconds(dtype, seqlens)
            for dtype in (torch.float32, torch.bfloat16)
        },
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cpu_attention.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
