"""Times and memory of the variants of a work, taking turns in one process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from franca_fast.benchmarks.cases import Case

_MIN_ROUNDS, _MAX_ROUNDS = 5, 200


def measure(case: Case, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Times of all variants of one case, and their memory.

    Args:
        case: What to measure.
        seconds: After so long no new round begins, once there were five.
        device: Device type of the case.

    Returns:
        Medians in seconds, all measurements, ratios to "eager", peak and result bytes, and the
        share of the bandwidth of a copy of as many bytes as the logits have.
    """
    inputs = case.make()
    memory = {
        name: peak_and_result_bytes(lambda run=run: run(inputs), device)  # type: ignore[misc]
        for name, run in case.variants.items()
    }
    times: dict[str, list[float]] = {name: [] for name in case.variants}
    start, rounds = time.monotonic(), 0
    while rounds < _MIN_ROUNDS or (time.monotonic() - start < seconds and rounds < _MAX_ROUNDS):
        for name, run in case.variants.items():
            times[name].append(_seconds(lambda run=run: run(inputs), device))  # type: ignore[misc]
        rounds += 1
    medians = {name: statistics.median(values) for name, values in times.items()}
    bandwidth = copy_bandwidth(case.logits_bytes, device)
    floor = case.bytes_moved / bandwidth
    return {
        "name": case.name,
        "logits_bytes": case.logits_bytes,
        "copy_bytes_per_second": bandwidth,
        "median_seconds": medians,
        "seconds": times,
        "speedup": {name: medians["eager"] / value for name, value in medians.items()},
        "roofline_share": {name: floor / value for name, value in medians.items()},
        "peak_extra_bytes": {name: peak for name, (peak, _) in memory.items()},
        "result_bytes": {name: size for name, (_, size) in memory.items()},
    }


def copy_bandwidth(n_bytes: int, device: str = "cpu") -> float:
    """Bytes a second, read and written, of a copy between two buffers of this size."""
    source = torch.ones(max(1, n_bytes // 4), device=device)
    target = torch.zeros_like(source)
    copies = [_seconds(lambda: target.copy_(source), device) for _ in range(7)]
    return 2 * source.nbytes / statistics.median(copies)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of a table, one for each case and variant; the first row is the header."""
    rows = [
        ["work", "variant", "median ms", "against eager", "peak extra", "of it results", "roofline"]
    ]
    for result in results:
        for name, median in result["median_seconds"].items():
            rows.append(
                [
                    result["name"],
                    name,
                    f"{median * 1e3:.3f}",
                    f"{result['speedup'][name]:.1f}x",
                    f"{result['peak_extra_bytes'][name] / result['logits_bytes']:.1%}",
                    f"{result['result_bytes'][name] / result['logits_bytes']:.1%}",
                    f"{result['roofline_share'][name]:.0%}",
                ]
            )
    return rows


def _instruction_set() -> str | None:
    try:
        from franca_fast import _C
    except ImportError:
        return None
    return _C.cpu_isa()


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_and_result_bytes(call: Callable[[], object], device: str = "cpu") -> tuple[int, int]:
    """Peak of what a call holds at a time, and what it returns, as PyTorch's allocator sees it.

    The kernels get all their memory from PyTorch, so it sees everything; the resident size of the
    process would also show what the C library keeps for later.
    """
    call()  # compiles what is to be compiled
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            result = call()
        recorded: Any = profiler.profiler
        events = recorded.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        held = peak = 0
        for _, change in changes:
            held += change
            peak = max(peak, held)
    return peak, sum(t.numel() * t.element_size() for t in _tensors_in(result))


def _tensors_in(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors_in(part)]
