"""What a protocol found: figures by width of the features, and all that they depend on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from franca_fast.errors import InputError
from franca_fast.files import check_file, write_json, write_text
from franca_fast.spelling import spell

_SUFFIXES = (".json", ".md")
_MOST_COLUMNS = 9  # of figures; with more a line is hard to read


@dataclass
class Result:
    """Figures of a protocol.

    Attributes:
        protocol: its name.
        figures: width of the features -> name of the figure -> value; shares are in per cent.
        settings: the protocol's settings, a dataclass whose defaults are those of the protocol.
        data: role, such as "train" -> what is known of its images.
        errors: like `figures`, the standard error of those that are means over seeds or tries.
        details: what else there is, plain values, such as the IoU of each class.
        encoder: what was evaluated: how it was named, a checksum of its weights, the precision.
        paper: name of a figure -> the value of Franca's paper for this model and data, at full
            width.
        seconds: of the whole evaluation.

    Example:
        >>> @dataclass
        ... class Settings:
        ...     k: int = 30
        >>> result = Result("in-context", {128: {"mIoU": 41.23}}, Settings(k=10), {})
        >>> print(result.table())
        dimensions  mIoU
               128  41.2
        >>> result.changed
        {'k': 10}
    """

    protocol: str
    figures: dict[int, dict[str, float]]
    settings: Any
    data: dict[str, dict[str, Any]]
    errors: dict[int, dict[str, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from the protocol's, with their values."""
        return {
            entry.name: getattr(self.settings, entry.name)
            for entry in dataclasses.fields(self.settings)
            if getattr(self.settings, entry.name) != entry.default
        }

    @property
    def columns(self) -> list[str]:
        """Names of the figures, in their order."""
        return list(dict.fromkeys(name for row in self.figures.values() for name in row))

    def rows(self) -> list[list[str]]:
        """A line for each width: the width, and the figures as text."""
        full = max(self.figures)
        lines = [
            [str(width), *(self._text(width, name) for name in self.columns)]
            for width in self.figures
        ]
        if self.paper:
            printed = [f"{self.paper[n]:.1f}" if n in self.paper else "-" for n in self.columns]
            lines.append([f"{full} (paper)", *printed])
        return lines

    def _text(self, width: int, name: str) -> str:
        if name not in self.figures[width]:
            return "-"
        value, error = self.figures[width][name], self.errors.get(width, {}).get(name)
        return f"{value:.1f}" if error is None else f"{value:.1f} +- {error:.1f}"

    def table(self) -> str:
        """The figures as aligned text: a line for each width, or for each figure where many are."""
        lines = [["dimensions", *self.columns], *self.rows()]
        if len(self.columns) > _MOST_COLUMNS:
            lines = [list(column) for column in zip(*lines, strict=True)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "protocol": self.protocol,
            "figures": _with_text_keys(self.figures),
            "standard_errors": _with_text_keys(self.errors),
            "paper": self.paper,
            "settings": dataclasses.asdict(self.settings),
            "settings_that_differ_from_the_protocol": self.changed,
            "data": self.data,
            "details": self.details,
            "encoder": self.encoder,
            "seconds": round(self.seconds, 3),
        }

    def markdown(self) -> str:
        """Everything for a reader, as Markdown."""
        header = ["dimensions", *self.columns]
        lines = [f"# {self.protocol}", "", _row(header), _row(["---:"] * len(header))]
        lines += [_row(row) for row in self.rows()]
        changed = ", ".join(f"{name} {value}" for name, value in self.changed.items())
        lines += ["", f"Settings that differ from the protocol's: {changed or 'none'}.", ""]
        for title, facts in (
            ("encoder", self.encoder),
            ("settings", dataclasses.asdict(self.settings)),
            *((f"data, {role}", facts) for role, facts in self.data.items()),
        ):
            lines += [f"## {title}", ""]
            lines += [f"- {name}: {_plain(value)}" for name, value in facts.items()] + [""]
        return "\n".join([*lines, f"Computed in {self.seconds:.1f} s.", ""])

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes `.json` or `.md`, atomically.

        Raises:
            InputError: another suffix, or the file exists.
            OSError: the file cannot be written.
        """
        file = check_result_file(path, overwrite=overwrite)
        if file.suffix == ".json":
            write_json(file, self.as_dict())
        else:
            write_text(file, self.markdown())


def check_result_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuses a file that a result could not be written to, before the work.

    Raises:
        InputError: another suffix than .json and .md, or a file that exists.
    """
    file = check_file(path, overwrite=overwrite)
    if file.suffix not in _SUFFIXES:
        raise InputError(f"output: '{path}'; accepted: a suffix of {', '.join(_SUFFIXES)}")
    return file


def _with_text_keys(figures: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {str(width): dict(row) for width, row in figures.items()}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(value: Any) -> str:
    return spell(str(value)).replace("|", "\\|").replace("<", "\\<")
