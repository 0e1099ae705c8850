"""One command for a machine with a GPU and no network: build, test on the device, measure.

Usage: python bench/gpu.py [--wheels FOLDER] [--out FOLDER] [--quick] [--long]

Builds the compiled core for the GPU at hand, runs the operators' tests on the device with every
backend that runs there, times the operators beside their baselines, and writes gpu.json and gpu.md.
Takes under 8 minutes. Every part is a process of its own with a time limit: one that fails, crashes
or hangs is recorded, and the rest goes on.

--wheels names a folder with wheels of what the machine lacks (see NEEDED); nothing is downloaded.
--long runs the tests under compute-sanitizer's memcheck and racecheck as well, which takes long.
--device cpu drives the same program without a GPU, at tiny sizes, to prove the program itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
# What a machine must have, or get from --wheels, by the name of its module and of its wheel.
NEEDED = {
    "setuptools": "setuptools",
    "pybind11": "pybind11",
    "cmake": "cmake",
    "ninja": "ninja",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
    "safetensors": "safetensors",
    "numpy": "numpy",
}
# Each file of tests runs in a process of its own, since a fault of a kernel spoils its process. The
# tests of ranks are left out: their processes talk over the CPU.
TESTS = (
    "python_tests/backends/test_device.py",
    *sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "python_tests" / "ops").glob("test_*.py")
        if path.name != "test_distributed.py"
    ),
)
SECONDS = 460.0  # for everything but --long
LIMITS = {"wheels": 60.0, "build": 200.0, "tests": 120.0, "measure": 90.0, "sanitizer": 1800.0}
SANITIZED = "python_tests/backends/test_device.py"


class Session:
    """Runs commands with the environment and within the time of one call of this program."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments = arguments
        self.scratch = scratch
        self.deadline = time.monotonic() + SECONDS
        self.environment = os.environ | {"FRANCA_FAST_TEST_DEVICE": arguments.device}
        self.prepend("PYTHONPATH", ROOT)

    def prepend(self, variable: str, folder: Path) -> None:
        """Puts a folder in front of a list of folders in the environment."""
        rest = self.environment.get(variable)
        self.environment[variable] = os.pathsep.join([str(folder), *([rest] if rest else [])])

    def run(self, command: list[str], limit: float, budgeted: bool = True) -> dict[str, Any]:
        """Runs a command for up to `limit` seconds and, if `budgeted`, the time that is left.

        Returns:
            "seconds" and, if the command failed, "error" with the end of what it said.
        """
        left = min(limit, self.deadline - time.monotonic()) if budgeted else limit
        if left <= 1:
            return {"seconds": 0.0, "error": "not run: out of time"}
        start = time.monotonic()
        log = self.scratch / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it started ends with it
            )
            try:
                status: int | None = process.wait(left)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end_group(process)
        result: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
        if status != 0:
            said = log.read_bytes()[-2000:].decode(errors="replace")
            why = f"no end after {left:.0f} s" if status is None else f"status {status}"
            result["error"] = f"{why}: {said}"
        return result

    def measured(self, part: list[str], limit: float) -> tuple[Any, dict[str, Any]]:
        """Runs a measurement of gpu_measure.py and returns what it wrote, None for nothing."""
        out = self.scratch / "measured.json"
        out.unlink(missing_ok=True)
        quick = ["--quick"] if self.arguments.quick else []
        command = [sys.executable, __file__, "--device", self.arguments.device, *quick, *part]
        result = self.run([*command, "--write", str(out)], limit)
        return (json.loads(out.read_text()) if out.exists() else None), result


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def install_wheels(session: Session) -> dict[str, Any]:
    """Installs what is missing from --wheels beside, not into, this Python's packages."""
    missing = [wheel for name, wheel in NEEDED.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return {"seconds": 0.0}
    if session.arguments.wheels is None:
        return {"seconds": 0.0, "error": f"missing, and --wheels not given: {', '.join(missing)}"}
    target = session.scratch / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--disable-pip-version-check"]
    folders = ["--find-links", str(session.arguments.wheels.resolve()), "--target", str(target)]
    result = session.run([*pip, *folders, *missing], LIMITS["wheels"])
    session.prepend("PYTHONPATH", target)
    session.prepend("PATH", target / "bin")
    return result


def build(session: Session) -> dict[str, Any]:
    """Builds the core into the source tree for this GPU."""
    import torch

    if shutil.which("nvcc", path=session.environment["PATH"]) is None:
        home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
        session.prepend("PATH", home / "bin")
    major, minor = torch.cuda.get_device_capability()
    suffix = "a" if (major, minor) == (9, 0) else ""
    session.environment |= {
        "FRANCA_FAST_BUILD": "required",
        "FRANCA_FAST_CUDA": "on",
        "FRANCA_FAST_CUDA_ARCHS": f"{major}{minor}{suffix}-real",
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return session.run(command, LIMITS["build"])


def run_tests(session: Session) -> list[dict[str, Any]]:
    """The tests of the operators on the device, one result for each file."""
    results = []
    for path in TESTS:
        report = session.scratch / "tests.xml"
        report.unlink(missing_ok=True)
        selected = ["-k", session.arguments.tests] if session.arguments.tests else []
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected]
        result = session.run([*pytest, f"--junitxml={report}", path], LIMITS["tests"])
        results.append({"file": path, **result, **counts(report)})
        if results[-1].get("ran") == 0 and session.arguments.tests:
            results[-1].pop("error", None)  # nothing of this file was selected
    return results


def counts(report: Path) -> dict[str, Any]:
    """How many tests of a report ran, and the names and messages of those that failed."""
    if not report.exists():
        return {}
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {
        case.get("name", ""): str(child.get("message"))[:300]
        for case in cases
        for child in case
        if child.tag in ("failure", "error")
    }
    return {"ran": len(cases), "failed": failed}


def measure(session: Session) -> tuple[dict[str, float] | None, list[dict[str, Any]]]:
    """Ceilings of the device and a row for each case and variant."""
    survey, result = session.measured(["--part", "survey"], LIMITS["measure"])
    if survey is None:
        return None, [{"case": "all", "variant": "", "error": result.get("error", "no result")}]
    rows: list[dict[str, Any]] = []
    for case, variants in survey["cases"].items():
        if session.arguments.only not in case:
            continue
        done: list[str] = []
        while len(done) < len(variants):
            skip = [argument for name in done for argument in ("--skip", name)]
            found, result = session.measured(["--part", case, *skip], LIMITS["measure"])
            found = found or [{"case": case, "variant": variants[len(done)]}]
            if "ms" not in found[-1]:
                # The variant that was begun last ended the process; a new one takes the others.
                found[-1].setdefault("error", result.get("error", "no result"))
            rows += found
            done += [row["variant"] for row in found]
    ceilings = survey.get("ceilings")
    return ceilings, with_shares(rows, ceilings)


def with_shares(
    rows: list[dict[str, Any]], ceilings: dict[str, float] | None
) -> list[dict[str, Any]]:
    """Adds the speedup against the first variant of each case and the share of the roofline."""
    baselines: dict[str, float] = {}
    for row in rows:
        if "ms" not in row:
            continue
        row["speedup"] = baselines.setdefault(row["case"], row["ms"]) / row["ms"]
        if ceilings:
            floor = 1e3 * max(
                row["bytes_moved"] / ceilings["copy_bytes_per_second"],
                row["operations"] / ceilings["bf16_operations_per_second"],
            )
            row["roofline_share"] = floor / row["ms"]
    return rows


def sanitize(session: Session) -> list[dict[str, Any]]:
    """The tests of the compiled kernels under compute-sanitizer."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda"]
    results = []
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *pytest, SANITIZED]
        if shutil.which(command[0], path=session.environment["PATH"]) is None:
            results.append({"tool": tool, "error": "compute-sanitizer was not found"})
            continue
        session.environment["FRANCA_FAST_TEST_SIZES"] = "small"
        result = session.run([*command, "-o", "timeout=1200"], LIMITS["sanitizer"], budgeted=False)
        results.append({"tool": tool, **result})
    return results


def machine(device: str) -> dict[str, Any]:
    """Card, driver, clocks and versions."""
    import torch

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "bench/gpu.py", *sys.argv[1:]]),
    }
    if device == "cpu":
        return facts | {"card": "none: a dry run on the CPU"}
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"]
    try:
        smi = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        values = smi.stdout.strip().split(", ")
    except (OSError, subprocess.SubprocessError) as error:
        values = [f"nvidia-smi failed: {error}"]
    facts |= dict(zip(query.split(","), values, strict=False))
    return facts | {"card": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def verdict(report: dict[str, Any]) -> bool:
    """Whether everything that was asked for ran and passed."""
    parts = [report["wheels"], report["build"], *report["tests"], *report["sanitizer"]]
    return not any("error" in part or part.get("failed") for part in parts + report["benchmarks"])


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"- {key}: {value}" for key, value in report["machine"].items()]
    for name in ("wheels", "build"):
        part = report[name]
        lines.append(f"- {name}: {part.get('error', 'done').splitlines()[0]}, {part['seconds']} s")
    if limits := report["ceilings"]:
        lines.append(f"- copy: {limits['copy_bytes_per_second'] / 1e12:.2f} TB/s")
        lines.append(f"- bf16 products: {limits['bf16_operations_per_second'] / 1e12:.0f} TFLOP/s")
    for part in report["tests"]:
        failed = part.get("failed", {})
        lines.append(f"- {part['file']}: {part.get('ran', 0)} tests, {len(failed)} failed")
        lines += [f"  - {name}: {message}".splitlines()[0] for name, message in failed.items()]
        if "error" in part and not failed:
            lines.append("  - " + part["error"].splitlines()[0])
    for part in report["sanitizer"]:
        lines.append(f"- {part['tool']}: {part.get('error', 'clean').splitlines()[0]}")
    lines += ["", "| work | variant | ms | against the first | roofline | peak MiB |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in report["benchmarks"]:
        head = f"| {row['case']} | {row['variant']} |"
        if "ms" not in row:
            lines.append(f"{head} {row['error'].splitlines()[0]} | | | |")
            continue
        share = f"{row['roofline_share']:.0%}" if "roofline_share" in row else ""
        memory = row["peak_bytes"] / 2**20
        lines.append(f"{head} {row['ms']:.3f} | {row['speedup']:.1f}x | {share} | {memory:.0f} |")
    return "\n".join(lines) + "\n"


def run_all(arguments: argparse.Namespace) -> int:
    """Runs all parts; 0 when everything passed, 1 when something failed."""
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(arguments, Path(scratch))
        report: dict[str, Any] = {"machine": machine(arguments.device)}
        report["wheels"] = install_wheels(session)
        skipped = arguments.skip_build or arguments.device == "cpu"
        report["build"] = {"seconds": 0.0} if skipped else build(session)
        report["tests"] = run_tests(session)
        report["ceilings"], report["benchmarks"] = measure(session)
        report["sanitizer"] = sanitize(session) if arguments.long else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "gpu.md").write_text(table(report))
    print(table(report))
    return 0 if verdict(report) else 1


def run_part(arguments: argparse.Namespace) -> int:
    """One measurement, in this process."""
    import gpu_measure

    setting = gpu_measure.setting_of(arguments.device, arguments.quick)
    seconds = 0.1 if arguments.device == "cpu" else 1.0
    if arguments.part == "survey":
        gpu_measure.survey(setting, seconds, arguments.write)
    else:
        gpu_measure.measure_case(setting, arguments.part, arguments.skip, seconds, arguments.write)
    return 0


def main() -> int:
    """Returns 0 when all passed, 1 when something failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what is missing")
    parser.add_argument("--skip-build", action="store_true", help="use the core as it is installed")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--long", action="store_true", help="compute-sanitizer, too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tests", default="", help="only tests that pytest's -k selects with this")
    parser.add_argument("--only", default="", help="only works whose name contains this")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--skip", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        return run_part(arguments)
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("bench/gpu.py: no CUDA device is visible to PyTorch; nothing was built or measured")
        return 2
    return run_all(arguments)


if __name__ == "__main__":
    sys.exit(main())
