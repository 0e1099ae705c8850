"""Random `kill -9`: every run that goes on has the losses and the weights of an undisturbed one.

    python -m python_tests.long.kill_loop --kills 200

Half of the kills hit one process and half two gloo ranks, at moments that are random in time: while
it loads, trains, writes a checkpoint or exports. A killed run is started again, and killed again,
until it ends by itself; then its losses, and every tensor of its last checkpoint, are compared bit
for bit with those of a run that nothing disturbed. Not part of the suite, as it takes minutes.

The parent only imports, so that a fork of it is like a new process.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed.tensor  # what ranks import first of all, and slowly

from franca_fast.files import write_json
from franca_fast.hub.checkpoint_files import read_checkpoint, steps_in
from franca_fast.training import pretrain
from python_tests.training.tiny import TINY, losses_of

_STEPS = 12
_OVERRIDES = [
    f"train.total_steps={_STEPS}",
    "train.checkpoint_every=3",
    "train.device=cpu",
    "evaluation.eval_period_iterations=5",
]


@dataclass
class Figures:
    """What happened with one number of ranks.

    Attributes:
        ranks: how many.
        kills: processes, or groups of ranks, killed before they ended.
        runs: runs that were completed in spite of them.
        after_steps: steps in metrics.jsonl at each kill.
        in_a_checkpoint: kills that left a checkpoint half written.
        different: completed runs that differ from the undisturbed one; expected to be none.
    """

    ranks: int
    kills: int = 0
    runs: int = 0
    after_steps: list[int] = field(default_factory=list)
    in_a_checkpoint: int = 0
    different: list[str] = field(default_factory=list)


def launch(folder: Path, ranks: int) -> list[int]:
    """Starts a run, or goes on with it; returns the processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            _train(folder, rank, ranks, port)
        processes.append(process)
    return processes


def _train(folder: Path, rank: int, ranks: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code = 1
    log = os.open(folder.with_suffix(f".{rank}.log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    try:
        torch.set_num_threads(1)
        code = 0 if pretrain(TINY, folder, overrides=_OVERRIDES, verbose=False).exported else 1
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def finish(processes: list[int]) -> list[int]:
    """Waits for processes; returns their exit codes, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def kill_after(processes: list[int], seconds: float) -> bool:
    """Kills all processes at a moment; returns false when they had all ended by themselves."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in processes):
            break
        time.sleep(0.002)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    codes = finish(processes)
    if any(code > 0 for code in codes):
        raise SystemExit(f"a rank failed by itself: exit codes {codes}; see its log")
    return any(codes)


def differs(folder: Path, undisturbed: Path) -> str:
    """What distinguishes a completed run from the undisturbed one; empty when nothing does."""
    if losses_of(folder) != losses_of(undisturbed):
        return f"{folder.name}: losses"
    ours, theirs = (read_checkpoint(f / "checkpoints" / str(_STEPS)) for f in (folder, undisturbed))
    if ours.shapes != theirs.shapes or ours.training["loader"] != theirs.training["loader"]:
        return f"{folder.name}: checkpoint"
    for name in ours.shapes:
        if not torch.equal(ours.read(name), theirs.read(name)):
            return f"{folder.name}: {name}"
    return ""


def measure(
    ranks: int, kills: int, folder: Path, chance: random.Random, report: Callable[[Figures], None]
) -> None:
    """Kills runs until there were enough kills, lets the last one end, reports after each run."""
    undisturbed = folder / f"undisturbed-{ranks}"
    started = time.monotonic()
    codes = finish(launch(undisturbed, ranks))
    if any(codes):
        raise SystemExit(f"the undisturbed run failed with exit codes {codes}")
    longest = time.monotonic() - started
    figures = Figures(ranks)
    while figures.kills < kills:
        run = folder / f"killed-{ranks}-{figures.runs}"
        while True:
            seconds = chance.uniform(0.0, longest) if figures.kills < kills else 3600.0
            if not kill_after(launch(run, ranks), seconds):
                break
            figures.kills += 1
            lines = run / "metrics.jsonl"
            figures.after_steps.append(len(lines.read_text().splitlines()) if lines.exists() else 0)
            checkpoints = run / "checkpoints"
            names = [p.name for p in checkpoints.iterdir()] if checkpoints.is_dir() else []
            figures.in_a_checkpoint += any(name.startswith(".tmp") for name in names)
            print(
                f"{ranks} ranks: kill {figures.kills} after {figures.after_steps[-1]} steps, "
                f"checkpoints {steps_in(checkpoints)}",
                flush=True,
            )
        figures.runs += 1
        if difference := differs(run, undisturbed):
            figures.different.append(difference)
        report(figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, help="also write the figures as JSON, after each run"
    )
    args = parser.parse_args()
    chance = random.Random(args.seed)
    found: dict[int, Figures] = {}
    ranks = " ".join(map(str, args.ranks))
    command = (
        f"python -m python_tests.long.kill_loop --kills {args.kills} --ranks {ranks} "
        f"--seed {args.seed}"
    )

    def report(figures: Figures) -> None:
        found[figures.ranks] = figures
        print(
            f"{figures.ranks} ranks: {figures.kills} kills in {figures.runs} completed runs of "
            f"{_STEPS} steps, {figures.in_a_checkpoint} within a checkpoint, "
            f"{len(figures.different)} runs differ",
            flush=True,
        )
        if args.output:
            results = [asdict(each) for each in found.values()]
            write_json(args.output, {"command": command, "steps": _STEPS, "results": results})

    with tempfile.TemporaryDirectory() as folder:
        for n_ranks in args.ranks:
            measure(n_ranks, args.kills // len(args.ranks), Path(folder), chance, report)
    return 1 if any(figures.different for figures in found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
