"""Part: what the hardware counters say of each hot kernel, by ncu.

Every operator is called once at the size of the paper, under ncu. Its details, and each
instruction's share of the samples, go to the log and from there to the archive.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import record
from .options import parse
from .parts import ROOT

KERNELS = (
    "row_mass_kernel|column_logsumexp_kernel|iteration_kernel|row_partials_kernel|"
    "clustering_forward_kernel|clustering_backward_kernel|scores_kernel|streamed_|attention_"
)
# Metrics that go to the record; everything is in the log.
METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__occupancy_limit_registers",
    "launch__waves_per_multiprocessor",
)
REPORT = ROOT / "build" / "gpu" / "profile.ncu-rep"


def target() -> int:
    """Calls every operator once; what ncu watches."""
    import torch

    import franca_fast as ff

    from .measure import setting_of
    from .works import cases

    wanted = {"sinkhorn": "cuda", "loss": "cuda in place", "scores": "cuda", "attention": "cuda"}
    setting = setting_of("cuda")
    for case in cases(setting):
        variant = wanted.get(case.name.split()[0])
        if variant is None or "attention fwd " in case.name:
            continue
        torch.manual_seed(0)
        with setting.device:
            inputs = case.make()
        with ff.use_backend("cuda"):
            case.variants[variant](inputs)
        torch.cuda.synchronize()
        del inputs
    return 0


def show(page: str, *options: str) -> str:
    """A page of the report."""
    command = ["ncu", "--import", str(REPORT), "--page", page, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def add_rows() -> None:
    """The chosen metrics of each kernel, as rows."""
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(show("raw", "--csv", "--print-units", "base"))))
    for row in rows[1:]:  # the first one holds units
        name = re.sub(r"\(.*", "", row.get("Kernel Name", ""))
        record.add(kernel=name, **{metric: row.get(metric) for metric in METRICS})


def main() -> int:
    """Returns 0 when ncu did its work."""
    options = parse(__doc__, target={"action": "store_true"})
    if options.target:
        return target()
    if options.device == "cpu" or shutil.which("ncu") is None:
        record.add(note="no kernel was profiled: this needs a GPU and ncu")
        return 0 if options.device == "cpu" else 1
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    command = ["ncu", "--clock-control", "none", "--set", "full", "--import-source", "no"]
    command += ["--kernel-name", f"regex:{KERNELS}", "--force-overwrite", "--export", str(REPORT)]
    command += [sys.executable, "-m", "bench.gpu.profile", "--target"]
    status = subprocess.run(command, cwd=Path.cwd(), check=False).returncode
    if REPORT.exists():
        add_rows()
        print(show("details"))
        print(show("source", "--csv"))
    return status


if __name__ == "__main__":
    sys.exit(main())
