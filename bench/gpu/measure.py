"""Times calls on a device, in the process of bench.gpu.timings that does the work.

A row is appended as soon as it is known; one that says "begun" tells what a crash interrupted.

Times are those of the GPU alone: a kernel that only waits keeps the GPU busy until the host has
started everything that is timed. Inputs rotate, so that none is in the caches when its turn comes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu import record
from bench.gpu.case import Case, Setting, asked_for
from bench.gpu.works import cases
from franca_fast.benchmarks.measure import peak_and_result_bytes

FEWEST_SETS, MOST_SETS = 2, 16
COLD_BYTES = 256 << 20  # several times the L2 cache of any card: inputs rotate through so much
WARM_UPS = 2
FEWEST_TIMES, MOST_TIMES = 7, 200
CLOCK_HZ = 2e9  # about, of the kernel that waits
LONGEST_WAIT = 0.1  # seconds


def setting_of(device: str) -> Setting:
    """Sizes of the paper on a GPU; on a CPU, where this only proves the program, tiny ones."""
    if device == "cpu":
        return Setting(torch.device("cpu"), (3,), (40, 70), 16, crops=((2, 5), (3, 2)))
    return Setting(torch.device(device))


def milliseconds(
    call: Callable[[Any], object], inputs: list[Any], seconds: float, device: torch.device
) -> tuple[list[float], float]:
    """Times of single calls, each on other inputs than the one before, and the host's share.

    Returns:
        Times in milliseconds, and the median time in microseconds that the host took for a call.
    """
    gpu = device.type == "cuda"
    host: list[float] = []
    for i in range(WARM_UPS):
        call(inputs[i % len(inputs)])
    if gpu:
        torch.cuda.synchronize()
    times: list[float] = []
    wait = 2e-4
    deadline = time.monotonic() + seconds
    while len(times) < FEWEST_TIMES or (time.monotonic() < deadline and len(times) < MOST_TIMES):
        given = inputs[(WARM_UPS + len(times)) % len(inputs)]
        if gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(int(min(wait, LONGEST_WAIT) * CLOCK_HZ))
            start.record()
        begin = time.perf_counter()
        call(given)
        host.append(time.perf_counter() - begin)
        if gpu:
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
            wait = 2 * max(host[-3:]) + 1e-4
        else:
            times.append(host[-1] * 1e3)
    return times, statistics.median(host) * 1e6


def graph_milliseconds(
    call: Callable[[Any], object], inputs: list[Any], seconds: float
) -> list[float]:
    """Times of replays of captured calls, one graph for each set of inputs."""
    graphs = []
    for given in inputs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(given)
        graphs.append(graph)
    return milliseconds(lambda graph: graph.replay(), graphs, seconds, torch.device("cuda"))[0]


def kernel_microseconds(call: Callable[[Any], object], inputs: Any) -> dict[str, float]:
    """What each kernel of a call takes on the GPU, by its name."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        call(inputs)
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.name[:120]
            found[name] = found.get(name, 0.0) + event.time_range.elapsed_us()
    return found


def peak_bytes(call: Callable[[Any], object], inputs: Any, device: torch.device) -> int:
    """Peak memory of a call beyond its inputs; of a dry run it is not asked."""
    if device.type != "cuda":
        return 0
    return peak_and_result_bytes(lambda: call(inputs), device.type)[0]


def size_of(inputs: Any) -> int:
    """Bytes of all tensors in nested sequences and dataclasses."""
    if isinstance(inputs, torch.Tensor):
        return inputs.numel() * inputs.element_size()
    if inputs is None or isinstance(inputs, float):  # what targets have beside tensors
        return 0
    parts = vars(inputs).values() if dataclasses.is_dataclass(inputs) else inputs
    return sum(map(size_of, parts))


def input_sets(case: Case, device: torch.device) -> list[Any]:
    """So many inputs that none is still in the caches when its turn comes again."""
    with device:
        first = case.make()
        wanted = math.ceil(COLD_BYTES / max(1, size_of(first)))
        count = min(MOST_SETS, max(FEWEST_SETS, wanted))
        return [first, *(case.make() for _ in range(count - 1))]


def measure_variant(
    case: Case, name: str, inputs: list[Any], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Time, host's time, memory and kernels of one variant."""
    call, found = case.variants[name], dict[str, Any]()
    found["peak_bytes"] = peak_bytes(call, inputs[0], device)
    times, host = milliseconds(call, inputs, seconds, device)
    found |= {"ms": statistics.median(times), "fastest_ms": min(times), "times": len(times)}
    found |= {"host_us": host, "bytes_moved": case.bytes_moved, "operations": case.operations}
    if device.type == "cuda":
        if case.short:
            try:
                replays = graph_milliseconds(call, inputs, seconds)
                found["graph_ms"] = statistics.median(replays)
            except RuntimeError as error:
                found["graph_error"] = str(error).splitlines()[0]
        with contextlib.suppress(Exception):  # the profiler may not work here
            found["kernels"] = kernel_microseconds(call, inputs[0])
    return found


def warm(case: Case, name: str, inputs: list[Any]) -> dict[str, Any]:
    """One call, which compiles what is to be compiled."""
    begin = time.monotonic()
    case.variants[name](inputs[0])
    return {"warm_seconds": round(time.monotonic() - begin, 1)}


def main(arguments: list[str] | None = None) -> None:
    """Measures what is asked for, but for what is skipped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--only", required=True)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--skip", action="append", default=[])
    options = parser.parse_args(arguments)
    setting = setting_of(options.device)
    seconds = 0.02 if options.device == "cpu" else 0.3
    for case in cases(setting):
        todo = [
            name
            for name in case.variants
            if options.only in case.name
            and (name in options.variant or not options.variant)
            and f"{case.name}::{name}" not in options.skip
        ]
        inputs: list[Any] = []
        for name in todo:
            where = {"case": case.name, "variant": name}
            record.add(**where, state="begun")
            torch.manual_seed(0)
            try:
                # Not before something is to be done with them: these are many gigabytes.
                inputs = inputs or input_sets(case, setting.device)
                with asked_for(name):
                    if options.warm:
                        found = warm(case, name, inputs)
                    else:
                        found = measure_variant(case, name, inputs, setting.device, seconds)
            except torch.OutOfMemoryError as error:
                # Any other error may have left the device unusable: a new process goes on.
                found = {"error": str(error).splitlines()[0]}
            record.add(**where, **found)
        del inputs
        if options.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
