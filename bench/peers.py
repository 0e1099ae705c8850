"""Our steps, operators and features beside those of Birder, lightly-train and timm.

    python bench/peers.py [--only "step birder fp32"] [--alone] [ibot.separate_head=false ...]

None of the three is a dependency: `pip install birder lightly-train timm`, and what is not
installed is said and left out. Steps are those of the peers' own training loops (peer_child.py),
each in a process of its own, which take turns; `--alone` runs one process after the other instead.
Settings that follow are those of steps.
Rows that were measured take their places in results/peers.json and peers.md, and the others stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.peer_operators import measure, works  # noqa: E402
from bench.turns import Child, ChildError, started, take_turns  # noqa: E402
from bench.whole_step import command_line, version_of  # noqa: E402
from franca_fast.benchmarks import machine  # noqa: E402

PRECISIONS = ("fp32", "bf16")
# What ours changes to do the work of a peer.
STEPS = {
    "birder": [],
    "lightly-train": ["dino.nesting_dims=[384]", "dino.normalize_bottleneck=true"],
}


def installed(peer: str) -> bool:
    """Whether a peer can be imported; a line says it when it cannot."""
    there = find_spec(peer.replace("-", "_")) is not None
    if not there:
        print(f"{peer} is not installed, and what stands beside it is left out: pip install {peer}")
    return there


def steps_beside(peer: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times and peak memory of whole steps, ours and a peer's."""
    common = ["--threads", str(torch.get_num_threads())]
    ours = ["ours", precision, *STEPS[peer], *options.overrides, *common]
    theirs = [peer, precision, *options.overrides, *common]
    children = {"ours": ("bench.peer_child", ours), peer: ("bench.peer_child", theirs)}
    answers: dict[str, Any] = {}
    if options.alone:
        for name, (module, arguments) in children.items():
            with Child(name, module, arguments) as child:
                answers |= take_turns([child], options.steps)
    else:
        with ExitStack() as stack:
            answers = take_turns(started(stack, children), options.steps)
    return {
        "seconds": {name: [a["seconds"] for a in rows] for name, rows in answers.items()},
        "peak_bytes": {name: rows[-1]["peak_bytes"] for name, rows in answers.items()},
    }


def rows(options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """What was asked for and can be measured: name of the row, peer, and what measures it."""
    how = [*options.overrides, *(["alone"] if options.alone else [])]
    for peer in STEPS:
        for precision in PRECISIONS:
            name = " ".join(["step", peer, precision, *how])
            if options.only in name and installed(peer):
                yield name, peer, partial(steps_beside, peer, precision, options)
    for work in works():
        if options.only in work.name and not how and installed(work.peer):
            yield work.name, work.peer, partial(measure, work, options.seconds)


def markdown(found: dict[str, Any]) -> str:
    """The table of all rows: medians in milliseconds, and how many times faster ours is."""
    lines = [
        "| work | peer | its ms | ours | ours ms | ratio | its GiB | ours GiB | load |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found.items():
        peer, medians = row["peer"], row["median_seconds"]
        peaks = {n: f"{b / 2**30:.2f}" for n, b in row.get("peak_bytes", {}).items()}
        for variant, median in medians.items():
            if variant != peer:
                lines.append(
                    f"| {name} | {peer} {row['versions'][peer]} | {medians[peer] * 1e3:.1f} | "
                    f"{variant} | {median * 1e3:.1f} | {medians[peer] / median:.2f}x | "
                    f"{peaks.get(peer, '')} | {peaks.get(variant, '')} | "
                    f"{row['machine']['load_average'][0]:.1f} |"
                )
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    """The table in its order, with the machine and commands that made it."""
    order = [f"step {peer} {precision}" for peer in STEPS for precision in PRECISIONS]
    order += [work.name for work in works()]
    names = (name for first in order for name in sorted(found) if name.startswith(first))
    table = markdown({name: found[name] for name in names})
    machines = [row["machine"] for row in found.values()]
    made = {f"- `{m['command']}`, {m['date']}" for m in machines}
    on = {f"{m['cpu']}, {m['threads']} threads, torch {m['torch']}" for m in machines}
    ours = {row["versions"]["ours"] for row in found.values()}
    title = f"On {' and '.join(sorted(on))}; ours is {', '.join(sorted(ours))}. Made by"
    return "\n".join([title, "", *sorted(made), "", table, ""])


def main() -> int:
    """Measures, and returns 0 when every row could be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--alone", action="store_true", help="steps one process after the other")
    parser.add_argument("--steps", type=int, default=2, help="of each, after one more")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each operator, at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "peers.json")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    # With the load before anything was measured.
    about = {**machine(), "command": command_line("peers")}
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    well = True
    for name, peer, measured in rows(options):
        try:
            row = measured()
        except ChildError as error:
            print(f"{name}: {error}", file=sys.stderr)
            well = False
            continue
        found[name] = {
            "peer": peer,
            "versions": {"ours": version_of(ROOT), peer: version(peer)},
            "median_seconds": {n: statistics.median(t) for n, t in row["seconds"].items()},
            **row,
            "machine": about,
        }
        print(*markdown({name: found[name]}).splitlines()[2:], sep="\n", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(found))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
