"""Part: which kernels are faster on this card; writes the card's entries of the table of choices.

python -m bench.gpu.choice [--out FILE]

Every operator is timed on every backend that runs it, forward and backward where it has one, and
attention for one length of each bucket and both head_dims. The entries of this card's capability in
franca_fast/backends/choices.json are replaced; --out writes a copy, for FRANCA_FAST_CHOICES.
In a session the table is written beside the record, too.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import franca_fast as ff
from bench.gpu import record
from bench.gpu.case import Case, Setting
from bench.gpu.clustering_works import loss_cases, scores_cases, sinkhorn_cases, streamed_cases
from bench.gpu.measure import input_sets, milliseconds, setting_of
from bench.gpu.options import parse
from franca_fast.backends.choices import COMMITTED, OWN, TORCH, read_table
from franca_fast.files import write_text

WORKS: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "sinkhorn": sinkhorn_cases,
    "clustering_cross_entropy": loss_cases,
    "prototype_scores": scores_cases,
    "streamed_clustering": streamed_cases,
}
# A length of each bucket: ViT/14 at 98, 168, 224, 364 and 518 pixels.
LENGTHS = (50, 145, 257, 677, 1370)
HEAD_DIMS = (64, 128)
TOKENS, WIDTH = 16384, 1024
SECONDS = 0.1  # for each time

Times = Mapping[str, float]


def operator_times(setting: Setting) -> Iterator[tuple[str, Times]]:
    """Milliseconds of each operator by backend, at the most rows."""
    for operator, work in WORKS.items():
        case = list(work(setting))[-1]
        inputs, times = input_sets(case, setting.device), {}
        for backend in setting.backends(operator):
            with ff.use_backend(backend):
                found, _ = milliseconds(case.variants[backend], inputs, SECONDS, setting.device)
            times[backend] = statistics.median(found)
        yield operator, times


def attention_times(setting: Setting) -> Iterator[tuple[int, int, Times]]:
    """Milliseconds of forward and backward by head_dim, length and backend."""
    for head_dim in HEAD_DIMS:
        for length in LENGTHS:
            seqlens = [length] * (TOKENS // length)
            shape = (sum(seqlens), 3, WIDTH // head_dim, head_dim)

            def run(qkv: Any, seqlens: list[int] = seqlens) -> object:
                out = ff.ops.varlen_attention_qkv(qkv, seqlens)
                return torch.autograd.grad(out, qkv, out.detach())

            def make(shape: tuple[int, ...] = shape) -> torch.Tensor:
                return torch.randn(shape, dtype=torch.bfloat16).requires_grad_()

            inputs, times = input_sets(Case("attention", make), setting.device), {}
            for backend in setting.backends("varlen_attention"):
                with ff.use_backend(backend):
                    found, _ = milliseconds(run, inputs, SECONDS, setting.device)
                times[backend] = statistics.median(found)
            yield head_dim, length, times


def fastest(times: Times) -> str:
    """The backend with the least time."""
    return min(times, key=times.__getitem__)


def operator_entry(times: Mapping[str, Times]) -> dict[str, str]:
    """The fastest backend of each operator."""
    return {operator: fastest(by_backend) for operator, by_backend in times.items()}


def attention_entry(times: Mapping[tuple[int, int], Times]) -> tuple[str, dict[str, list[str]]]:
    """Which of our backends is faster over all lengths, and at which it beats PyTorch's kernels."""
    names = [name for name in next(iter(times.values())) if name != TORCH]
    totals = {
        name: sum(by_backend[name] / by_backend[TORCH] for by_backend in times.values())
        for name in names
    }
    own = fastest(totals) if names else TORCH
    entry: dict[str, list[str]] = {}
    for (head_dim, _), by_backend in times.items():
        better = own != TORCH and by_backend[own] < by_backend[TORCH]
        entry.setdefault(str(head_dim), []).append(OWN if better else TORCH)
    return own, entry


def write_entries(
    path: Path,
    capability: str,
    card: str,
    operators: dict[str, str],
    attention: dict[str, list[str]],
) -> None:
    """Replaces the entries of one capability and says where they come from."""
    table = read_table(path if path.exists() else COMMITTED)
    origin = [s for s in table.origin if not s.startswith(f"{capability} ")]
    origin.append(f"{capability} measured on {card}, torch {torch.__version__}.")
    content = {
        "origin": sorted(origin, key=lambda s: float(s.split()[0])),
        "operators": table.operators | {capability: operators},
        "longest": table.longest,
        "attention": table.attention | {capability: attention},
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def main() -> int:
    """Measures everything and writes the entries."""
    options = parse(__doc__, out={"type": Path, "default": COMMITTED})
    if options.device == "cpu":
        record.add(note="nothing is chosen in a dry run")
        return 0
    setting = setting_of(options.device)
    operators: dict[str, Times] = {}
    for operator, times in operator_times(setting):
        operators[operator] = times
        record.add(choice=operator, ms=times, fastest=fastest(times))
    attention: dict[tuple[int, int], Times] = {}
    for head_dim, length, times in attention_times(setting):
        attention[head_dim, length] = times
        name = f"attention, head_dim {head_dim}, length {length}"
        record.add(choice=name, ms=times, fastest=fastest(times))
    own, entry = attention_entry(attention)
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    chosen = operator_entry(operators) | {"varlen_attention": own}
    write_entries(options.out, capability, torch.cuda.get_device_name(), chosen, entry)
    text = options.out.read_text(encoding="utf-8")
    if record.FOLDER in os.environ:  # a rented machine's checkout goes with it
        write_text(Path(os.environ[record.FOLDER], options.out.name), text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
