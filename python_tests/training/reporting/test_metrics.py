"""From results on the device to lines of metrics.jsonl."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from franca_fast.training.reporting.metrics import (
    MetricsFile,
    TensorBoard,
    peak_memory_gb,
    to_numbers,
)
from franca_fast.training.step import StepOutput


def output(value: float) -> StepOutput:
    return StepOutput(
        loss=torch.tensor(value),
        terms={"ibot": torch.tensor([0.25, 0.5]), "koleo": torch.tensor(2.0)},
        norms={"backbone": torch.tensor(3.0)},
        finite=torch.tensor(value < 10),
        statistics={"ibot_entropy": torch.tensor([1.0, 2.0])},
    )


def test_results_of_several_steps_are_read_at_once() -> None:
    first, second = to_numbers([output(1.5), output(11.0)])
    assert first == {
        "loss": 1.5,
        "ibot": 0.75,
        "ibot_heads": [0.25, 0.5],
        "koleo": 2.0,
        "grad_norm/backbone": 3.0,
        "finite": True,
        "ibot_entropy": [1.0, 2.0],
    }
    assert (second["loss"], second["finite"]) == (11.0, False)


def test_float32_losses_survive_exactly() -> None:
    value = torch.tensor(1 / 3).item()
    assert to_numbers([output(value)])[0]["loss"] == value


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 0.5}\n{"step": 3}\n')
    file = MetricsFile(path, last_step=2)
    assert file.last == {"step": 2, "loss": 0.5}
    file.write({"step": 3, "loss": 1.0})
    file.close()
    assert lines(path) == [{"step": 1}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 1.0}]


def test_an_unfinished_last_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    MetricsFile(path, last_step=5).close()
    assert lines(path) == [{"step": 1}]


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    MetricsFile(path, last_step=-1).close()
    assert path.read_text() == ""


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, last_step=-1)
    file.write({"step": 1, "loss": float("nan"), "ibot_heads": [1.0, float("inf")]})
    file.close()
    assert lines(path) == [{"step": 1, "loss": None, "ibot_heads": [1.0, None]}]


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "board", first_step=0, enabled=True)
    board.write(1, {"loss": 1.0, "ibot_heads": [1.0, 2.0], "finite": True})
    board.close()
    assert len(list((tmp_path / "board").iterdir())) == 1


@pytest.mark.parametrize("name", [b"caf\xe9", b"\x93\xfa\x96{", b"\xd6\xd0"])
def test_tensorboard_files_are_written_where_names_are_not_utf_8(
    tmp_path: Path, name: bytes
) -> None:
    folder = tmp_path / os.fsdecode(name) / "board"
    board = TensorBoard(folder, first_step=0, enabled=True)
    board.write(1, {"loss": 2.0})
    board.close()
    (file,) = folder.iterdir()
    assert b"loss" in file.read_bytes()


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "board", first_step=0, enabled=False)
    board.write(1, {"loss": 1.0})
    board.close()
    assert not (tmp_path / "board").exists()


def test_without_tensorboard_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = TensorBoard(tmp_path / "board", first_step=0, enabled=True)
    board.write(1, {"loss": 1.0})
    assert not (tmp_path / "board").exists()


def test_peak_memory_of_the_process_is_plausible() -> None:
    assert 0.05 < peak_memory_gb(torch.device("cpu")) < 100
