"""Part: what the hardware counters say of each hot kernel, by ncu.

Every operator is called once at the size of the paper, under ncu. Its details, and the instructions
at which warps wait most, go to the log and from there to the archive.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.gpu import record
from bench.gpu.options import parse
from bench.gpu.parts import ROOT

KERNELS = (
    "row_mass_kernel|column_logsumexp_kernel|few_rows_kernel|row_partials_kernel|"
    "clustering_forward_kernel|clustering_backward_kernel|scores_kernel|streamed_|attention_"
)
# Each section costs runs of every kernel; the set "full" takes 2 seconds for each of them.
SECTIONS = (
    "SpeedOfLight",
    "LaunchStats",
    "Occupancy",
    "WarpStateStats",
    "MemoryWorkloadAnalysis",
    "InstructionStats",
    "SchedulerStats",
    "SourceCounters",
)
# Metrics that go to the record; everything is in the log.
METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__occupancy_limit_registers",
    "launch__waves_per_multiprocessor",
)
# What is called, by the first word of a work's name, and which of its cases.
WANTED = {
    "sinkhorn": ("cuda", ""),
    "loss": ("cuda in place", "N=3072"),
    "scores": ("cuda", "N=3072"),
    "attention": ("cuda", "fwd+bwd"),
}
SAMPLES = "Warp Stall Sampling (All Samples)"
MOST_INSTRUCTIONS = 60
REPORT = ROOT / "build" / "gpu" / "profile.ncu-rep"
# Pages of the report, with how they are asked for.
PAGES = {"raw": ["--csv", "--print-units", "base"], "source": ["--csv"], "details": []}


def target() -> int:
    """Calls every operator once; what ncu watches."""
    import torch

    from bench.gpu.case import asked_for
    from bench.gpu.measure import setting_of
    from bench.gpu.works import cases

    setting = setting_of("cuda")
    for case in cases(setting):
        variant, which = WANTED.get(case.name.split()[0], ("", ""))
        if not variant or which not in case.name:
            continue
        torch.manual_seed(0)
        with setting.device:
            inputs = case.make()
        with asked_for(variant):
            case.variants[variant](inputs)
        torch.cuda.synchronize()
        del inputs
    return 0


def show(page: str) -> str:
    """A page of the report."""
    command = ["ncu", "--import", str(REPORT), "--page", page, *PAGES[page]]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def plain(kernel: str) -> str:
    """A kernel's name without its parameters."""
    return re.sub(r"^void |\(.*", "", kernel)


def counters(raw: str) -> Iterator[record.Row]:
    """The chosen metrics of each kernel, of the page "raw"."""
    rows = list(csv.DictReader(io.StringIO(raw)))
    for row in rows[1:]:  # the first one holds units
        metrics = {name: row.get(name) for name in METRICS}
        yield {"kernel": plain(row.get("Kernel Name") or "?"), **metrics}


def hottest(source: str) -> Iterator[str]:
    """Where the warps of each kernel wait: its first instructions by samples, of page "source"."""
    listings: list[tuple[str, list[dict[str, str]]]] = []
    header: list[str] = []
    for cells in csv.reader(io.StringIO(source)):
        if cells[:1] == ["Kernel Name"] and len(cells) > 1:
            listings.append((plain(cells[1]), []))
        elif SAMPLES in cells:
            header = cells
        elif listings and len(cells) == len(header):
            listings[-1][1].append(dict(zip(header, cells, strict=True)))
    if not listings:
        raise ValueError("it names no kernel")
    # Of several launches of a kernel, the longest.
    longest: dict[str, list[dict[str, str]]] = {}
    for kernel, rows in sorted(listings, key=lambda listing: sum(map(_samples, listing[1]))):
        longest[kernel] = rows
    for kernel, rows in longest.items():
        total = sum(map(_samples, rows))
        yield f"\n{kernel}: {total} samples at {len(rows)} instructions"
        first = _address(rows[0]) if rows else 0
        for row in sorted(rows, key=_samples, reverse=True)[:MOST_INSTRUCTIONS]:
            share = _samples(row) / max(1, total)
            where = f"{_address(row) - first:#06x}"
            yield f"  {where} {_samples(row):8d} {share:6.1%}  {row['Source'].strip()}"


def _samples(row: dict[str, str]) -> int:
    return int(float(row[SAMPLES].replace(",", "") or 0))


def _address(row: dict[str, str]) -> int:
    return int(row["Address"], 16)


def main() -> int:
    """Returns 0 when ncu did its work."""
    options = parse(__doc__, target={"action": "store_true"})
    if options.target:
        return target()
    if options.device == "cpu" or shutil.which("ncu") is None:
        record.add(note="no kernel was profiled: this needs a GPU and ncu")
        return 0 if options.device == "cpu" else 1
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.unlink(missing_ok=True)
    command = ["ncu", "--clock-control", "none", "--import-source", "no"]
    command += [f"--section={section}" for section in SECTIONS]
    command += ["--metrics", ",".join(METRICS), "--kernel-name", f"regex:{KERNELS}"]
    command += ["--force-overwrite", "--export", str(REPORT)]
    command += [sys.executable, "-m", "bench.gpu.profile", "--target"]
    begin = time.monotonic()
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    record.add(profiled_seconds=round(time.monotonic() - begin, 1))
    if not REPORT.exists():
        return status or 1
    with ThreadPoolExecutor() as pool:
        raw, source, details = pool.map(show, PAGES)
    for row in counters(raw):
        record.add(**row)
    print(details)
    try:
        print("\n".join(hottest(source)))
    except (KeyError, ValueError) as error:  # another version of ncu may write another page
        print(f"the page of instructions was not understood: {error!r}\n{source[:1_000_000]}")
    return status


if __name__ == "__main__":
    sys.exit(main())
