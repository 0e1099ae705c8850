"""Times whole training steps: our backends, and an earlier version of the package, taking turns.

    python bench/whole_step.py demo
    python bench/whole_step.py vits14 --precision bf16 --backend cpu --against ../old
    python bench/whole_step.py demo --backend cpu --against ../old --losses 200
    python bench/whole_step.py vits14 --backend cpu --against ../old --profile FILE.md

Each version is a process of its own, which does one step when it is its turn: same seed, same
configuration and so the same batches. `--losses N` takes N steps and compares the losses.
Settings may follow as section.key=value. JSON and a table go to results/whole_step/.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.step_child import CASES  # noqa: E402
from bench.step_profile import profile_tables  # noqa: E402
from bench.turns import Child, ChildError, started, take_turns  # noqa: E402
from franca_fast.benchmarks import machine  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "whole_step"


def version_of(folder: Path) -> str:
    """The commit of a checkout, or the name of a folder that is none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or folder.resolve().name


def versions(options: argparse.Namespace) -> dict[str, tuple[str, list[str]]]:
    """What takes turns: name -> module and arguments."""
    common = ["--threads", str(options.threads)] if options.threads else []
    found = {}
    for backend in options.backend or ("cpu", "torch"):
        found[backend] = [options.case, options.precision, backend, *options.overrides]
    if options.against:
        _, first = next(iter(found.items()))
        package = str(options.against.resolve())
        found[version_of(options.against)] = [*first, "--package", package]
    return {name: ("bench.step_child", [*arguments, *common]) for name, arguments in found.items()}


def compared(losses: dict[str, list[float]]) -> list[list[Any]]:
    """Rows of step, losses of the first version and another, and their relative difference.

    Steps 1, 2, 5, 10, 20, ... and the last are shown, and the one where the two differ most.
    """
    (_, ours), *others = losses.items()
    rows = []
    for name, theirs in others:
        apart = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
        shown = {m * 10**e for e in range(5) for m in (1, 2, 5)} | {len(ours)}
        most = apart.index(max(apart)) + 1
        for step in sorted(s for s in shown | {most} if s <= len(ours)):
            label = f"{step} (largest)" if step == most else str(step)
            rows.append([name, label, ours[step - 1], theirs[step - 1], apart[step - 1]])
    return rows


def report(answers: dict[str, list[dict[str, Any]]], images: int) -> dict[str, Any]:
    """Medians, rates and peaks of each version."""
    times = {name: [a["seconds"] for a in rows] for name, rows in answers.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "median_seconds": medians,
        "images_per_second": {name: images / value for name, value in medians.items()},
        "peak_bytes": {name: rows[-1]["peak_bytes"] for name, rows in answers.items()},
        "seconds": times,
        "losses": {name: [a["loss"] for a in rows] for name, rows in answers.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables of a report."""
    first = next(iter(found["median_seconds"].values()))
    lines = [
        "| version | median ms | images/s | time against the first | peak memory GiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, median in found["median_seconds"].items():
        rate, peak = found["images_per_second"][name], found["peak_bytes"][name] / 2**30
        lines.append(
            f"| {name} | {median * 1e3:.1f} | {rate:.1f} | {median / first:.2f}x | {peak:.2f} |"
        )
    if rows := compared(found["losses"]):
        lines += ["", f"Losses of {next(iter(found['losses']))} beside the others:", ""]
        lines += ["| beside | step | loss | its loss | relative difference |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        lines += [f"| {n} | {s} | {a:.6f} | {b:.6f} | {d:.1e} |" for n, s, a, b, d in rows]
    return "\n".join(lines)


def command_line(script: str, against: Path | None = None) -> str:
    """What was typed; a checkout is its version, and other places here are their last names."""
    words = [version_of(against) if against and w == str(against) else w for w in sys.argv[1:]]
    words = [Path(word).name if os.path.isabs(word) else word for word in words]
    return shlex.join(["python", f"bench/{script}.py", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--backend", action="append", choices=("cpu", "torch"), help="these only")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="an earlier checkout, built")
    parser.add_argument("--steps", type=int, default=10, help="of each version, after one more")
    parser.add_argument("--losses", type=int, metavar="N", help="compare the losses of N steps")
    parser.add_argument("--profile", type=Path, metavar="FILE.md", help="tables by torch.profiler")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="JSON file, beside which the table goes")
    options = parser.parse_intermixed_args()
    name = f"{options.case}_{options.precision}" + ("_losses" if options.losses else "")
    out = options.out or RESULTS / f"{name}.json"
    steps, warm_ups = (options.losses, 0) if options.losses else (options.steps, 1)
    with ExitStack() as stack:
        try:
            children = started(stack, versions(options))
            images, about = children[0].about["images"], machine()
            answers = take_turns(children, steps, warm_ups)
            profiles = profiled(children) if options.profile else {}
        except ChildError as error:
            sys.exit(str(error))
    about |= {"threads": children[0].about["threads"], "load_average_after": os.getloadavg()}
    found = report(answers, images)
    command = command_line("whole_step", options.against)
    title = (
        f"`{command}` on {about['cpu']}, {about['threads']} threads, torch {about['torch']}, "
        f"{about['date']}, load average {about['load_average'][0]:.1f} before"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    version = version_of(ROOT)
    content = {"command": command, "version": version, "machine": about, **found}
    out.write_text(json.dumps(content, indent=1) + "\n")
    out.with_suffix(".md").write_text(f"{title}\n\n{markdown(found)}\n")
    print(markdown(found))
    if profiles:
        options.profile.write_text(f"{title}\n\n{profile_tables(profiles)}\n")


def profiled(children: list[Child]) -> dict[str, dict[str, list[float]]]:
    """One step of each version under the profiler."""
    return {child.name: child.ask("profile")["operators"] for child in children}


if __name__ == "__main__":
    main()
