"""The record of a session as Markdown: what ran, what failed, every figure with its baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.gpu.record import Row, devices, is_state

TABLE = "report.md"
TITLE = "# A session on a GPU\n\n"
DRY_TITLE = """# A dry run on the CPU

Its figures are those of tiny sizes: they prove the program, and nothing of a GPU.

"""
# What a work's other variants are compared with: the first of these that was measured.
BASELINES = ("eager", "library", "sdpa", "torch")


def all_well(rows: list[Row]) -> bool:
    """Whether every part that was to run ended well, and nothing in them failed."""
    ends = {row["part"]: row["state"] for row in rows if is_state(row)}
    bad = any("error" in row and ("variant" in row or "backend" in row) for row in rows)
    failed = any(row.get("passed") is False or row.get("outcome") == "failed" for row in rows)
    return bool(ends) and set(ends.values()) == {"done"} and not bad and not failed


def table(rows: list[Row]) -> str:
    """The whole report."""
    sections = (_parts, _facts, _checks, _tests, _timings, _steps, _choices, _kernels)
    texts = ["\n".join(lines) for section in sections if (lines := _written(section, rows))]
    return (DRY_TITLE if "cpu" in devices(rows) else TITLE) + "\n\n".join(texts) + "\n"


def _written(section: Callable[[list[Row]], Iterator[str]], rows: list[Row]) -> list[str]:
    """The lines of a section. Rows of a form that nobody thought of cost this section only."""
    lines = []
    try:
        for line in section(rows):
            lines.append(line)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        lines.append(f"\nThe rest of this section could not be written: {error!r}")
    return lines


def _line(text: Any, length: int = 160) -> str:
    return " ".join(str(text).replace("|", "/").split())[:length]


# What a state is called where it was the last.
UNFINISHED = {"waiting": "not begun", "begun": "begun, not finished"}
EARLIER = "; the figures below are of an earlier session"


def _parts(rows: list[Row]) -> Iterator[str]:
    yield "## Parts\n\n| part | state | seconds | |\n| --- | --- | ---: | --- |"
    measured = {row["part"] for row in rows if not is_state(row)}
    for part, row in {row["part"]: row for row in rows if is_state(row)}.items():
        state = UNFINISHED.get(row["state"], row["state"])
        if row["state"] in ("waiting", "not run") and part in measured:
            state += EARLIER
        said = f"{row.get('why', '')} {row.get('said', '')[-100:]}"
        yield f"| {part} | {state} | {row.get('seconds', '')} | {_line(said)} |"


def _facts(rows: list[Row]) -> Iterator[str]:
    facts = [row for row in rows if "fact" in row]
    if facts:
        yield "## Machine\n"
    for row in facts:
        yield f"- {row['fact']}: {_line(row['value'], 400)}"


def _checks(rows: list[Row]) -> Iterator[str]:
    checks = [row for row in rows if "check" in row]
    if checks:
        yield (
            "## Against float64\n\n| part | check | | error | allowed | same bits | graph | |\n"
            "| --- | --- | --- | ---: | ---: | --- | --- | --- |"
        )
    for row in checks:
        figures = [f"{row[name]:.1e}" if name in row else "" for name in ("error", "allowed")]
        bits = [str(row.get(name, "")) for name in ("same_bits", "graph_same_bits")]
        cells = [row["part"], row["check"], "passed" if row["passed"] else "FAILED"]
        yield f"| {' | '.join([*cells, *figures, *bits])} | {_line(row.get('raised', ''))} |"


def _tests(rows: list[Row]) -> Iterator[str]:
    tests = [row for row in rows if "test" in row]
    if not tests:
        return
    yield "## Tests on the device\n"
    for part in dict.fromkeys(row["part"] for row in tests):
        own = [row["outcome"] for row in tests if row["part"] == part]
        counts = ", ".join(f"{own.count(name)} {name}" for name in dict.fromkeys(sorted(own)))
        yield f"- {part}: {counts}"
    for row in tests:
        if row["outcome"] == "failed":
            yield f"- FAILED {row['test']}: {_line(row['said'][-300:], 300)}"


def with_shares(rows: list[Row]) -> list[Row]:
    """The timings, with the speedup over the work's baseline and the share of the roofline."""
    done = {
        (row["case"], row["variant"]): dict(row) for row in rows if "ms" in row and "case" in row
    }
    ceilings = {
        name: row for (name, _), row in done.items() if name.startswith("ceiling: ") and row["ms"]
    }
    copy, product = ceilings.get("ceiling: copy"), ceilings.get("ceiling: bf16 product")
    for (case, _), row in done.items():
        baseline = next((b for name in BASELINES if (b := done.get((case, name)))), None)
        if baseline:
            row["speedup"] = baseline["ms"] / row["ms"]
        if not copy or not product:
            continue
        floor = max(
            row["bytes_moved"] * copy["ms"] / copy["bytes_moved"],
            row["operations"] * product["ms"] / product["operations"],
        )
        row["roofline_share"] = floor / row["ms"]
        if "graph_ms" in row:
            row["graph_roofline_share"] = floor / row["graph_ms"]
    return list(done.values())


def _timings(rows: list[Row]) -> Iterator[str]:
    timed = with_shares(rows)
    failed = [row for row in rows if "case" in row and "error" in row]
    if not timed and not failed:
        return
    yield (
        "## Times\n\nMedians of the GPU's time, cold caches.\n\n"
        "| work | variant | ms | speedup | roofline | by graph, ms | roofline | host, us | GB/s | "
        "TFLOP/s | peak MiB |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for case in dict.fromkeys(row["case"] for row in [*timed, *failed]):
        for row in sorted((r for r in timed if r["case"] == case), key=lambda r: r["ms"]):
            graph = row.get("graph_ms")
            cells = [
                case,
                row["variant"],
                f"{row['ms']:.4f}",
                f"{row['speedup']:.2f}x" if "speedup" in row else "",
                f"{row['roofline_share']:.0%}" if "roofline_share" in row else "",
                f"{graph:.4f}" if graph else _line(row.get("graph_error", ""), 40),
                f"{row['graph_roofline_share']:.0%}" if "graph_roofline_share" in row else "",
                f"{row['host_us']:.0f}",
                f"{row['bytes_moved'] / row['ms'] / 1e6:.0f}",
                f"{row['operations'] / row['ms'] / 1e9:.0f}" if row["operations"] else "",
                f"{row['peak_bytes'] / 2**20:.0f}",
            ]
            yield f"| {' | '.join(cells)} |"
        for row in failed:
            if row["case"] == case:
                yield f"| {case} | {row['variant']} | {_line(row['error'])} |"


def _steps(rows: list[Row]) -> Iterator[str]:
    steps = [row for row in rows if "recipe" in row and "backend" in row]
    if not steps:
        return
    yield (
        "## Whole training steps\n\n"
        "| recipe | batch | backend | step, ms | in a row, ms | host, ms | images/s "
        "| against torch | peak GiB | loss |\n"
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    base = {r["recipe"]: r["in_a_row_ms"] for r in steps if r["backend"] == "torch" and "loss" in r}
    for row in steps:
        head = f"| {row['recipe']} | {row['batch_size']} | {row['backend']}"
        if "error" in row:
            yield f"{head} | {_line(row['error'])} |"
            continue
        ratio = base.get(row["recipe"])
        cells = [
            f"{row['step_ms']:.1f}",
            f"{row['in_a_row_ms']:.1f}",
            f"{row['host_ms']:.1f}",
            f"{row['images_per_second']:.0f}",
            f"{ratio / row['in_a_row_ms']:.2f}x" if ratio else "",
            f"{row['peak_gib']:.1f}" if "peak_gib" in row else "",
            f"{row['loss']:.4f}",
        ]
        yield f"{head} | {' | '.join(cells)} |"


def _choices(rows: list[Row]) -> Iterator[str]:
    choices = [row for row in rows if "choice" in row]
    if choices:
        yield "## Choices\n\n| what | fastest | ms |\n| --- | --- | --- |"
    for row in choices:
        times = ", ".join(f"{name} {ms:.3f}" for name, ms in row["ms"].items())
        yield f"| {row['choice']} | {row['fastest']} | {times} |"


def _kernels(rows: list[Row]) -> Iterator[str]:
    kernels = [row for row in rows if "kernel" in row]
    if kernels:
        names = [name for name in kernels[0] if name not in ("part", "kernel")]
        yield "## Counters\n\n| kernel | " + " | ".join(names) + " |"
        yield "| --- |" + " ---: |" * len(names)
        for row in kernels:
            yield f"| {_line(row['kernel'], 80)} | " + " | ".join(str(row[n]) for n in names) + " |"
