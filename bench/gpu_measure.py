"""Measurements that bench/gpu.py runs in processes of their own, so that none can stop the others.

Each function writes what it has to a file as soon as it has it: what was measured before a crash or
the end of its time is kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Case, Setting, cases

from franca_fast.benchmarks.measure import peak_and_result_bytes

FEWEST_SETS, MOST_SETS = 3, 16
COLD_BYTES = 256 << 20  # several times the L2 cache of any card: inputs rotate through so much
WARM_UPS = 2


def setting_of(device: str, quick: bool) -> Setting:
    """Sizes of the paper on a GPU; on a CPU, where this only proves the program, tiny ones."""
    if device == "cpu":
        return Setting(torch.device("cpu"), (3,), (40, 70), 16, compile=False)
    if quick:
        return Setting(torch.device(device), (64, 512), (8192, 16384))
    return Setting(torch.device(device))


def write(path: Path, content: Any) -> None:
    """Replaces a JSON file at once."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def milliseconds(
    call: Callable[[Any], object], inputs: list[Any], seconds: float, device: torch.device
) -> list[float]:
    """Times of single calls, each on other inputs than the one before."""
    gpu = device.type == "cuda"
    for i in range(WARM_UPS):
        call(inputs[i % len(inputs)])
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while len(times) < 5 or (time.monotonic() < deadline and len(times) < 200):
        given = inputs[(WARM_UPS + len(times)) % len(inputs)]
        if gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call(given)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            call(given)
            times.append((time.perf_counter() - begin) * 1e3)
    return times


def peak_bytes(call: Callable[[Any], object], inputs: Any, device: torch.device) -> int:
    """Peak memory of a call beyond its inputs."""
    if device.type != "cuda":
        return peak_and_result_bytes(lambda: call(inputs))[0]
    call(inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings(device: torch.device, seconds: float) -> dict[str, float]:
    """Measured copy bandwidth (bytes read and written) and bf16 matrix rate of this device."""
    bytes_copied, width = (1 << 31, 8192) if device.type == "cuda" else (1 << 20, 64)
    sources = [torch.zeros(bytes_copied, dtype=torch.uint8, device=device) for _ in range(2)]
    target = torch.empty_like(sources[0])
    copies = milliseconds(target.copy_, sources, seconds, device)
    matrices = [torch.randn(width, width, device=device).bfloat16() for _ in range(FEWEST_SETS)]
    products = milliseconds(lambda m: m @ m, matrices, seconds, device)
    return {
        "copy_bytes_per_second": 2e3 * bytes_copied / statistics.median(copies),
        "bf16_operations_per_second": 2e3 * width**3 / statistics.median(products),
    }


def size_of(inputs: Any) -> int:
    """Bytes of all tensors in nested sequences and dataclasses."""
    if isinstance(inputs, torch.Tensor):
        return inputs.numel() * inputs.element_size()
    parts = vars(inputs).values() if dataclasses.is_dataclass(inputs) else inputs
    return sum(map(size_of, parts))


def input_sets(case: Case) -> list[Any]:
    """So many inputs that none is still in the caches when its turn comes again."""
    first = case.make()
    wanted = math.ceil(COLD_BYTES / max(1, size_of(first)))
    count = min(MOST_SETS, max(FEWEST_SETS, wanted))
    return [first, *(case.make() for _ in range(count - 1))]


def measure_case(setting: Setting, name: str, skip: list[str], seconds: float, out: Path) -> None:
    """Times the variants of one case. A row without "ms" was begun and not finished."""
    with setting.device:
        case = next(case for case in cases(setting) if case.name == name)
        torch.manual_seed(0)
        inputs = input_sets(case)
        rows: list[dict[str, Any]] = []
        for variant, call in case.variants.items():
            if variant in skip:
                continue
            rows.append({"case": name, "variant": variant})
            write(out, rows)
            try:
                rows[-1]["peak_bytes"] = peak_bytes(call, inputs[0], setting.device)
                times = milliseconds(call, inputs, seconds, setting.device)
                rows[-1] |= {"ms": statistics.median(times), "fastest_ms": min(times)}
                rows[-1] |= {"bytes_moved": case.bytes_moved, "operations": case.operations}
            except torch.OutOfMemoryError as error:
                # Any other error may have left the device unusable: a new process goes on.
                rows[-1]["error"] = str(error).splitlines()[0]
                torch.cuda.empty_cache()
            write(out, rows)


def survey(setting: Setting, seconds: float, out: Path) -> None:
    """Names of all cases with those of their variants, and the ceilings of the device."""
    with setting.device:
        found: dict[str, Any] = {"cases": {c.name: list(c.variants) for c in cases(setting)}}
        write(out, found)
        write(out, found | {"ceilings": ceilings(setting.device, seconds)})
