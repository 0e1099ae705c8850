"""One command for a machine with a GPU and no network: build, check on the device, measure.

Usage: python bench/gpu.py [--out FOLDER] [--skip-build] [--quick]

Builds the compiled core for the GPU at hand, compares every operator of every backend with float64,
times them beside their baselines, and writes gpu.json and gpu.md. Takes under 8 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
SECONDS_PER_VARIANT = 1.0
INPUT_SETS = 3  # rotated, so that no input is still in the L2 cache
TIME_LIMIT = 420.0  # no new measurement begins after so many seconds


def build() -> float:
    """Builds the core into the source tree for this GPU; returns the seconds it took."""
    major, minor = torch.cuda.get_device_capability()
    suffix = "a" if (major, minor) == (9, 0) else ""
    environment = os.environ | {
        "FRANCA_FAST_BUILD": "required",
        "FRANCA_FAST_CUDA": "on",
        "FRANCA_FAST_CUDA_ARCHS": f"{major}{minor}{suffix}-real",
    }
    start = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return time.monotonic() - start


def gpu_backends(operator: str) -> list[str]:
    """Backends that run an operator on bfloat16 tensors of this GPU."""
    from franca_fast.backends import registry

    tensor = torch.empty(0, device="cuda", dtype=torch.bfloat16)
    names = [name for name in registry._PACKAGES if registry._offers(name, operator)]
    return [name for name in names if registry._unavailable(name, operator, tensor) is None]


def run_checks() -> list[dict[str, Any]]:
    """Every check of every backend but the reference, with its error and its verdict."""
    from gpu_checks import CHECKS, tolerance

    results = []
    for operator, checks in CHECKS.items():
        for backend in gpu_backends(operator):
            if backend == "torch":
                continue
            for check in checks:
                torch.manual_seed(0)
                for name, error in check(backend):
                    passed = error <= tolerance(name)
                    results.append({"name": name, "error": error, "passed": passed})
                    if not passed:
                        print(f"WRONG: {name}: error {error:.2e}, accepted {tolerance(name):.0e}")
    return results


def milliseconds(call: Any, inputs: list[Any]) -> tuple[float, int]:
    """Median time of a call and its peak memory beyond the inputs, in bytes."""
    call(inputs[0])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(inputs[1])
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    times: list[float] = []
    deadline = time.monotonic() + SECONDS_PER_VARIANT
    while len(times) < 5 or (time.monotonic() < deadline and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call(inputs[len(times) % len(inputs)])
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), peak


def ceilings() -> dict[str, float]:
    """Measured copy bandwidth (bytes read and written) and bf16 matrix rate of this card."""
    source = torch.randint(255, (1 << 31,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy, _ = milliseconds(lambda pair: pair[1].copy_(pair[0]), [(source, target)] * 2)
    a = [torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(INPUT_SETS)]
    product, _ = milliseconds(lambda m: m @ m, a)
    return {
        "copy_bytes_per_second": 2 * source.numel() / copy * 1e3,
        "bf16_operations_per_second": 2 * 8192**3 / product * 1e3,
    }


def run_benchmarks(limits: dict[str, float], deadline: float, quick: bool) -> list[dict[str, Any]]:
    """Times every variant of every case until the deadline."""
    from gpu_cases import cases

    rows = []
    for case in cases(gpu_backends, quick):
        inputs = [case.make() for _ in range(INPUT_SETS)]
        floor = 1e3 * max(
            case.bytes_moved / limits["copy_bytes_per_second"],
            case.operations / limits["bf16_operations_per_second"],
        )
        baseline = None
        for variant, call in case.variants.items():
            row: dict[str, Any] = {"case": case.name, "variant": variant}
            rows.append(row)
            if time.monotonic() > deadline:
                row["error"] = "not measured: out of time"
                continue
            try:
                row["ms"], row["peak_bytes"] = milliseconds(call, inputs)
            except Exception as error:  # a variant that cannot run must not hide the others
                row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
            baseline = baseline or row["ms"]
            row["speedup"] = baseline / row["ms"]
            row["roofline_share"] = floor / row["ms"]
        del inputs
        torch.cuda.empty_cache()
    return rows


def machine() -> dict[str, str]:
    """Card, driver, clocks and versions."""
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"]
    try:
        smi = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        smi = f"nvidia-smi failed: {error}"
    return {
        "card": torch.cuda.get_device_name(),
        "driver and clocks": smi,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    limits = report["ceilings"]
    lines = [f"{key}: {value}" for key, value in report["machine"].items()]
    lines.append(f"copy: {limits['copy_bytes_per_second'] / 1e12:.2f} TB/s")
    lines.append(f"bf16 products: {limits['bf16_operations_per_second'] / 1e12:.0f} TFLOP/s")
    passed = sum(check["passed"] for check in report["checks"])
    lines.append(f"checks: {passed} of {len(report['checks'])} passed")
    lines += [
        "",
        "| work | variant | ms | against the first | roofline | peak MiB |",
        "|-|-|-|-|-|-|",
    ]
    for row in report["benchmarks"]:
        head = f"| {row['case']} | {row['variant']} |"
        if "error" in row:
            lines.append(f"{head} {row['error']} | | | |")
            continue
        lines.append(
            f"{head} {row['ms']:.3f} | {row['speedup']:.1f}x | {row['roofline_share']:.0%} "
            f"| {row['peak_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Returns 0 when all checks passed, 1 when one failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--skip-build", action="store_true", help="use the core as it is installed")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu.py: no CUDA device is visible to PyTorch; nothing was built or measured")
        return 2
    deadline = time.monotonic() + TIME_LIMIT
    seconds = 0.0 if arguments.skip_build else build()
    report: dict[str, Any] = {"machine": machine(), "build_seconds": seconds}
    report["checks"] = run_checks()
    report["ceilings"] = ceilings()
    report["benchmarks"] = run_benchmarks(report["ceilings"], deadline, arguments.quick)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu.json").write_text(json.dumps(report, indent=1))
    (arguments.out / "gpu.md").write_text(table(report))
    print(table(report))
    return 0 if all(check["passed"] for check in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
