"""Times what is ours in a transformer block on CPU: packed attention and SwiGLU's product.

Usage: python bench/cpu_block.py [--threads N] [--out FOLDER]

Forward and backward, in float32 and bfloat16, on the crops of a ViT-S/14 (4 images) and of the demo
(64 images). Attention beside PyTorch's kernel on each run of crops, a padded batch, and a call for
each crop; SwiGLU beside its formula in PyTorch. They take turns. Prints a table and writes
cpu_block.json and cpu_block.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import franca_fast as ff  # noqa: E402
from franca_fast.benchmarks import machine  # noqa: E402
from franca_fast.files import write_json, write_text  # noqa: E402

# Lengths of the crops, heads and elements of each; rows and width of the feed-forward's product.
BLOCKS = {
    "ViT-S/14": ([257] * 8 + [50] * 32, 6, 64, (3656, 1024)),
    "demo": ([17] * 128 + [5] * 256, 8, 16, (3456, 344)),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PYTORCHS = "PyTorch's kernel"
ROUNDS, SECONDS = 9, 0.2  # of each variant at least

Call = Callable[[Tensor], Tensor]


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


def silu_times_value(h: Tensor) -> Tensor:
    """The formula."""
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


def works(block: str, dtype: torch.dtype) -> dict[str, tuple[Tensor, dict[str, Call]]]:
    """What is timed: the input, and the variants; ours last."""
    seqlens, n_heads, head_dim, (rows, width) = BLOCKS[block]
    qkv = torch.randn(sum(seqlens), 3, n_heads, head_dim).to(dtype).requires_grad_()
    h = torch.randn(rows, 2 * width).to(dtype).requires_grad_()
    attention: dict[str, Call] = {
        PYTORCHS: lambda x: ff.ops.varlen_attention_qkv(x, seqlens),
        "a call for each crop": lambda x: one_by_one(x, seqlens),
        "padded batch": lambda x: padded(x, seqlens),
        "ours": lambda x: ff.ops.varlen_attention_qkv(x, seqlens),
    }
    return {
        "attention": (qkv, attention),
        "SwiGLU": (h, {"PyTorch's formula": silu_times_value, "ours": ff.ops.swiglu}),
    }


def milliseconds(given: Tensor, variants: dict[str, Call]) -> dict[str, float]:
    """Median time of each variant; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    while len(times["ours"]) < ROUNDS or sum(times["ours"]) < 1e3 * SECONDS:
        for name, call in variants.items():
            with ff.use_backend("torch" if name == PYTORCHS else "auto"):
                start = time.perf_counter()
                out = call(given)
                torch.autograd.grad(out, given, out.detach())
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    command = f"python bench/cpu_block.py --threads {arguments.threads}"
    header = f"`{command}`, torch {torch.__version__}, on {machine()['cpu']}."
    lines = [header, "", "| work | precision | beside | its ms | ours, ms | ratio |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: |"]
    report: dict[str, dict[str, float]] = {}
    for block in BLOCKS:
        for precision, dtype in DTYPES.items():
            for work, (given, variants) in works(block, dtype).items():
                found = milliseconds(given, variants)
                report[f"{block}, {work}, {precision}"] = found
                ours = found["ours"]
                lines += [
                    f"| {block}, {work} | {precision} | {name} | {ms:.2f} | {ours:.2f} "
                    f"| {ms / ours:.2f}x |"
                    for name, ms in found.items()
                    if name != "ours"
                ]
    table = "\n".join(lines) + "\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = {"command": command, **machine(), "milliseconds": report}
    write_json(arguments.out / "cpu_block.json", written)
    write_text(arguments.out / "cpu_block.md", table)
    print(table, end="")


if __name__ == "__main__":
    main()
