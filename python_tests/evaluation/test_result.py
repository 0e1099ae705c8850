from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.result import Result


@dataclass(frozen=True)
class Settings:
    k: int = 30
    seeds: tuple[int, ...] = (0, 1)


def result(**others: object) -> Result:
    figures = {8: {"mIoU": 10.04}, 128: {"mIoU": 41.26, "other": 1.0}}
    return Result("in-context", figures, Settings(k=10), {"train": {"images": 3}}, **others)


def test_the_table_has_every_width_and_figure() -> None:
    text = result(errors={128: {"mIoU": 0.21}}, paper={"mIoU": 76.7}).table()
    assert text.split()[:3] == ["dimensions", "mIoU", "other"]
    rows = [line.split() for line in text.splitlines()[1:]]
    assert rows == [
        ["8", "10.0", "-"],
        ["128", "41.3", "+-", "0.2", "1.0"],
        ["128", "(paper)", "76.7", "-"],
    ]


def test_many_figures_are_lines() -> None:
    figures = {width: {f"figure {i}": float(i) for i in range(10)} for width in (8, 128)}
    lines = Result("ood", figures, Settings(), {}).table().splitlines()
    assert lines[0].split() == ["dimensions", "8", "128"] and len(lines) == 11
    assert lines[10].split() == ["figure", "9", "9.0", "9.0"]


def test_what_differs_from_the_protocol_is_said() -> None:
    assert result().changed == {"k": 10}
    assert "Settings that differ from the protocol's: k 10." in result().markdown()


def test_json_and_markdown(tmp_path: Path) -> None:
    result(encoder={"model": "<b>|x"}).save(tmp_path / "a.json")
    result(encoder={"model": "<b>|x"}).save(tmp_path / "a.md")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["figures"]["128"]["mIoU"] == 41.26
    assert read["settings"] == {"k": 10, "seeds": [0, 1]}
    assert "- model: \\<b>\\|x" in (tmp_path / "a.md").read_text()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"output: .*a.csv'; accepted: a suffix of .json, .md"):
        result().save(tmp_path / "a.csv")
    result().save(tmp_path / "a.md")
    with pytest.raises(InputError, match="exists"):
        result().save(tmp_path / "a.md")
    result().save(tmp_path / "a.md", overwrite=True)
