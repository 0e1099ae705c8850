"""Times the clustering operators on CPU beside their baselines, and measures their memory.

    python bench/cpu.py [--threads 2] [--seconds 2] [--compile] [--out bench/results/cpu.json]

The variants of a case take turns in one process, so that what else the machine does hits all of
them. The table shows medians; the file has every measurement. Memory is the peak beyond the inputs
and the part of it that is the result (assignments, potentials, gradients), as shares of the logits
of one side in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
MIN_ROUNDS, MAX_ROUNDS = 5, 200


def peak_and_result_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """Peak of what a call holds at a time, and what it returns, as PyTorch's allocator sees it.

    The kernels get all their memory from PyTorch, so it sees everything; the resident size of the
    process would also show what the C library keeps for later.
    """
    call()  # compiles what is to be compiled
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    result_bytes = sum(t.numel() * t.element_size() for t in tensors_in(result))
    return peak, result_bytes


def tensors_in(result: Any) -> list[torch.Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors_in(part)]


def measure(case: Any, seconds: float) -> dict[str, Any]:
    """Times of all variants of one case, taking turns, and their memory."""
    inputs = case.make()
    memory = {
        name: peak_and_result_bytes(lambda run=run: run(inputs))
        for name, run in case.variants.items()
    }
    times: dict[str, list[float]] = {name: [] for name in case.variants}
    start, rounds = time.monotonic(), 0
    while rounds < MIN_ROUNDS or (time.monotonic() - start < seconds and rounds < MAX_ROUNDS):
        for name, run in case.variants.items():
            begin = time.perf_counter()
            run(inputs)
            times[name].append(time.perf_counter() - begin)
        rounds += 1
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "name": case.name,
        "logits_bytes": case.logits_bytes,
        "median_seconds": medians,
        "seconds": times,
        "speedup": {name: medians["eager"] / value for name, value in medians.items()},
        "peak_extra_bytes": {name: peak for name, (peak, _) in memory.items()},
        "result_bytes": {name: size for name, (_, size) in memory.items()},
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    from franca_fast import _C

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _C.cpu_isa(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": f"python bench/cpu.py --threads {options.threads} --seconds {options.seconds}"
        + (" --compile" if options.compile else "")
        + (f" --only {options.only}" if options.only else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one line for each case and variant."""
    lines = [
        "| work | variant | median ms | speedup | peak extra / logits | of it results |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        for name, median in result["median_seconds"].items():
            peak = result["peak_extra_bytes"][name] / result["logits_bytes"]
            own = result["result_bytes"][name] / result["logits_bytes"]
            lines.append(
                f"| {result['name']} | {name} | {median * 1e3:.2f} "
                f"| {result['speedup'][name]:.1f}x | {peak:.1%} | {own:.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures all cases and writes JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a baseline, too")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from cpu_cases import loss_case, sinkhorn_case

    report: dict[str, Any] = {"machine": machine(options), "results": []}
    for make in (sinkhorn_case, loss_case):
        for n_rows in (64, 512):
            for widths in ("8192", "131072", "nested"):
                for dtype in ("fp32", "bf16"):
                    case = make(n_rows, widths, dtype, options.compile)
                    if options.only in case.name:
                        report["results"].append(measure(case, options.seconds))
                        print(*table(report["results"][-1:]).splitlines()[2:], sep="\n", flush=True)
    text = table(report["results"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(
        f"`{report['machine']['command']}` on {report['machine']['cpu']}, "
        f"{report['machine']['threads']} threads\n\n{text}\n"
    )
    print(text)


if __name__ == "__main__":
    main()
