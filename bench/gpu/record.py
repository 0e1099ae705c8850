"""The record of a session on a GPU: rows.jsonl, to which every part appends what it finds at once.

A row is one line and one write, so parts that run at the same time never mix their rows, and a
process that is killed costs at most the row it was writing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROWS = "rows.jsonl"
# Where a part finds the folder of its session, and its own name.
FOLDER, PART = "FRANCA_FAST_GPU_RECORD", "FRANCA_FAST_GPU_PART"
SESSION = "session"  # in place of a part, in the row that begins a session

Row = dict[str, Any]


def append(folder: Path, row: Row) -> None:
    """Adds a row at the end of the record, on a line of its own also after one that was cut off."""
    line = (json.dumps(row) + "\n").encode()
    handle = os.open(folder / ROWS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        line = b"\n" + line if cut else line
        while line:  # a disk that is nearly full takes some of it, and then raises
            line = line[os.write(handle, line) :]
    finally:
        os.close(handle)


def add(**values: Any) -> None:
    """Adds a row of this process's part to the record of its session; alone, it prints the row."""
    row = {"part": part_name(), **values}
    if FOLDER in os.environ:
        append(Path(os.environ[FOLDER]), row)
    print(json.dumps(row), flush=True)


def part_name() -> str:
    """The part that this process belongs to."""
    return os.environ.get(PART, "alone")


def read(folder: Path) -> list[Row]:
    """All rows but those of a part that was begun again later, and lines that cannot be read.

    A folder may hold several sessions, such as the first and the second one on the same machine.
    """
    path = folder / ROWS
    rows = list(_parsed(path.read_bytes().split(b"\n"))) if path.exists() else []
    begun = {row["part"]: i for i, row in enumerate(rows) if is_state(row, "begun")}
    return [row for i, row in enumerate(rows) if i >= begun.get(row["part"], 0)]


def devices(rows: Iterable[Row]) -> set[str]:
    """The devices of all sessions, which are one unless rows were put together by hand."""
    return {str(row["device"]) for row in rows if row["part"] == SESSION and "device" in row}


def is_state(row: Row, *states: str) -> bool:
    """Whether a row says that a part is in one of these states; in any, when none is given."""
    # Variants that are timed have states, too.
    return "state" in row and "case" not in row and (not states or row["state"] in states)


def _parsed(lines: Iterable[bytes]) -> Iterable[Row]:
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict):
            continue
        if isinstance(row.get("part"), str) and isinstance(row.get("state", ""), str):
            yield row
