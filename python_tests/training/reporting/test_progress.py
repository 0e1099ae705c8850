"""What a run tells its user."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import pytest

from franca_fast.errors import FrancaError
from franca_fast.training.reporting import progress as module
from franca_fast.training.reporting.progress import Progress, run_log

FIGURES = {
    "loss": 12.3456,
    "grad_norm/backbone": 1.5,
    "grad_norm/dino_head": 0.5,
    "images_per_second": 100.0,
    "data_wait": 0.25,
    "peak_memory_gb": 2.0,
}
LINE = "loss 12.346, grad 1.50, 100.0 images/s, data 25%, 2.0 GB"


@pytest.fixture(autouse=True)
def no_other_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's own handlers would count as a program that set up logging itself."""
    monkeypatch.setattr(logging.getLogger("franca_fast"), "hasHandlers", lambda: False)


def test_plain_lines_go_to_the_screen_and_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_log(tmp_path / "train.log", verbose=True):
        Progress(0, 10, bar=False).show(2, FIGURES, seconds_per_step=3725.0 / 8)
    assert capsys.readouterr().err == f"step 2/10  {LINE}  ETA 1:02:05\n"
    assert LINE in (tmp_path / "train.log").read_text()


def test_lines_come_every_so_often_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_log(tmp_path / "train.log", verbose=True):
        progress = Progress(0, 4, bar=False)
        for step in (1, 2, 3, 4):
            progress.show(step, FIGURES, seconds_per_step=1.0)
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["1/4", "4/4"]


def test_a_bar_is_drawn_and_lines_go_to_the_log_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with run_log(tmp_path / "train.log", verbose=True):
        progress = Progress(2, 4, bar=True)
        progress.show(4, FIGURES, seconds_per_step=1.0)
        progress.close()
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert LINE in shown
    assert "step 4/4" not in shown
    assert "step 4/4" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("verbose", "shown"), [(True, "note\nwarning: care\n"), (False, "warning: care\n")]
)
def test_warnings_are_always_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verbose: bool, shown: str
) -> None:
    with run_log(tmp_path / "train.log", verbose=verbose):
        logging.getLogger("franca_fast.data").info("note")
        logging.getLogger("franca_fast.data").warning("care")
    assert capsys.readouterr().err == shown
    assert "INFO note" in (tmp_path / "train.log").read_text()


def test_an_error_is_logged_and_left_to_the_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FrancaError), run_log(tmp_path / "train.log", verbose=True):
        raise FrancaError("the disk is full")
    assert capsys.readouterr().err == ""
    assert "ERROR the disk is full" in (tmp_path / "train.log").read_text()


def test_logging_is_as_before_afterwards(tmp_path: Path) -> None:
    package = logging.getLogger("franca_fast")
    before = package.level, list(package.handlers)
    with run_log(tmp_path / "train.log", verbose=True):
        pass
    assert (package.level, package.handlers) == before


def test_an_error_counts_more_than_the_log_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    with (
        pytest.raises(FrancaError, match="the reason"),
        run_log(folder / "1.log", verbose=False, rank=1),
    ):
        folder.rmdir()
        raise FrancaError("the reason")


def test_what_every_evaluation_would_say_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("franca_fast.evaluation.image.knn")
    with run_log(tmp_path / "train.log", verbose=False):
        for text in ("a remark", "a remark", "another"):
            logger.warning("%s", text, extra={"once_in_a_run": True})
        for _ in range(2):
            logger.warning("a warning")
    for written in (capsys.readouterr().err, (tmp_path / "train.log").read_text()):
        assert [written.count(text) for text in ("a remark", "another", "a warning")] == [1, 1, 2]


def shown(err: str) -> tuple[list[float], list[int]]:
    """Images/s and the seconds to the end in the lines shown."""
    speeds = [float(line.split(" images/s")[0].split()[-1]) for line in err.splitlines()]
    clocks = [line.split("ETA ")[1].split(":") for line in err.splitlines()]
    return speeds, [int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in clocks]


def show_steps(seconds: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows steps of 64 images that took so many seconds, every one of them."""
    monkeypatch.setattr(module, "_PLAIN_SECONDS", 0.0)
    with run_log(tmp_path / "train.log", verbose=True):
        progress = Progress(0, 2000, bar=False)
        for step, duration in enumerate(seconds, start=1):
            figures = {**FIGURES, "images_per_second": 64 / duration}
            progress.show(step, figures, seconds_per_step=duration)


def test_a_stall_does_not_make_speed_and_end_jump(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_steps([0.15] * 1000 + [2.0] * 10, tmp_path, monkeypatch)
    speeds, ends = shown(capsys.readouterr().err)
    assert speeds[999] == pytest.approx(64 / 0.15, rel=1e-3) and abs(ends[999] - 150) <= 1
    assert min(speeds) > 0.75 * speeds[999]  # of the slow steps alone: 7 %
    assert max(ends[999:]) < 1.35 * ends[999]  # of the slow steps alone: 33 minutes


def test_a_lasting_change_of_speed_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_steps([0.15] * 1000 + [0.45] * 800, tmp_path, monkeypatch)
    speeds, ends = shown(capsys.readouterr().err)
    assert speeds[-1] == pytest.approx(64 / 0.45, rel=0.1)
    assert ends[-1] == pytest.approx(200 * 0.45, rel=0.1)
    falls = [b / a for a, b in pairwise(speeds[1000:])]
    assert min(falls) > 0.95


def test_what_was_measured_is_not_changed(tmp_path: Path) -> None:
    figures = dict(FIGURES)
    with run_log(tmp_path / "train.log", verbose=False):
        progress = Progress(0, 10, bar=False)
        progress.show(1, figures, seconds_per_step=1.0)
        progress.show(2, figures, seconds_per_step=9.0)
    assert figures == FIGURES
