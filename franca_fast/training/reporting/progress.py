"""What a run tells its user: a live bar on a terminal, plain lines elsewhere, and train.log."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from franca_fast.errors import FrancaError
from franca_fast.spelling import ERRORS

_PACKAGE = logging.getLogger("franca_fast")
_PLAIN_SECONDS = 10.0
# What is shown of the speed is its mean over about so much time of training.
_PACE_SECONDS = 90.0
# A rank that takes this much longer than the median rank is named.
_SLOW = 0.2

logger = logging.getLogger(__name__)


@contextmanager
def run_log(path: Path, *, verbose: bool, rank: int = 0) -> Iterator[None]:
    """Sends the package's log messages to a file, and to stderr too, during a block.

    Args:
        path: the file, appended to.
        verbose: also show information on stderr; warnings are shown in any case. An exception
            that ends the block goes to the file alone, as the caller sees it anyway.
        rank: other ranks than 0 report warnings only; their file is made with the first.
    """
    path.parent.mkdir(exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8", delay=rank != 0, errors=ERRORS)
    to_file.setLevel(logging.WARNING if rank else logging.INFO)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_screen = _ScreenHandler(logging.INFO if verbose and not rank else logging.WARNING)
    # A program that has set up logging of its own decides itself what is shown.
    for own in (to_file, to_screen):
        own.addFilter(_once_in_a_run())
    handlers = [to_file] if _PACKAGE.hasHandlers() else [to_file, to_screen]
    level = _PACKAGE.level
    _PACKAGE.setLevel(logging.INFO)
    for handler in handlers:
        _PACKAGE.addHandler(handler)
    try:
        yield
    except Exception as error:
        trace = not isinstance(error, FrancaError)
        # Of a run that never began rank 0 has removed the folder, perhaps; the error counts.
        with suppress(OSError):
            _PACKAGE.error("%s", error, exc_info=trace, extra={"only_in_file": True})
        raise
    finally:
        for handler in handlers:
            _PACKAGE.removeHandler(handler)
            handler.close()
        _PACKAGE.setLevel(level)


class Progress:
    """Shows the latest figures of a run.

    Args:
        step: steps done before.
        total: steps of the run.
        bar: draw a live bar; otherwise a line is logged at most every ten seconds.
        shown: false shows nothing, as on other ranks than 0.
    """

    def __init__(self, step: int, total: int, *, bar: bool, shown: bool = True) -> None:
        self._shown = shown
        self._total, self._bar = total, None
        self._last_line = -_PLAIN_SECONDS
        self._step, self._pace = step, _Pace()
        if bar:
            from tqdm import tqdm

            # In a terminal that does not know its size (0 x 0), tqdm's own look would hide the bar.
            width, height = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total, initial=step, unit="step", ncols=width, nrows=height, file=sys.stderr
            )

    def show(self, step: int, figures: Mapping[str, Any], *, seconds_per_step: float) -> None:
        """Shows the figures of a step, images/s and the time to the end smoothed.

        Args:
            step: steps done.
            figures: as in metrics.jsonl, with those of a log interval.
            seconds_per_step: over the same steps as the figures' images_per_second.
        """
        if not self._shown:
            return
        smooth = self._pace.add(step - self._step, seconds_per_step)
        self._step = step
        figures = _at_pace(figures, seconds_per_step / smooth if smooth else 1.0)
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str(_short(figures))
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_SECONDS or step >= self._total:
            self._last_line = now
            remaining = _duration((self._total - step) * smooth)
            message = f"step {step}/{self._total}  {_short(figures)}  ETA {remaining}"
            logger.info(message, extra={"only_in_file": self._bar is not None})

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class _Pace:
    """Seconds per step: all time over all steps, the earlier ones counting less and less.

    One stall so lasts in it as long as it lasted, whatever the steps in it took.
    """

    def __init__(self) -> None:
        self._steps = self._seconds = 0.0

    def add(self, steps: int, seconds_per_step: float) -> float:
        """Takes further steps in; returns the mean."""
        seconds = steps * seconds_per_step
        kept = math.exp(-seconds / _PACE_SECONDS)
        self._steps = kept * self._steps + steps
        self._seconds = kept * self._seconds + seconds
        return self._seconds / max(self._steps, 1e-9)


def _at_pace(figures: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The figures with another speed than that of the latest steps."""
    speeds = ("images_per_second", "images_per_second_per_gpu")
    return {**figures, **{name: figures[name] * factor for name in speeds if name in figures}}


def _once_in_a_run() -> Callable[[logging.LogRecord], bool]:
    """A filter that drops what an evaluation would say again at every interval."""
    said = set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        again = getattr(record, "once_in_a_run", False) and text in said
        said.add(text)
        return not again

    return is_new


class _ScreenHandler(logging.Handler):
    """Writes to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "only_in_file", False):
            return
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = prefix + record.getMessage()
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            print(text, file=sys.stderr, flush=True)
        else:
            tqdm.tqdm.write(text, file=sys.stderr)


def _short(figures: Mapping[str, Any]) -> str:
    norm = max((v for k, v in figures.items() if k.startswith("grad_norm/")), default=0.0)
    return (
        f"loss {figures['loss']:.3f}, grad {norm:.2f}, "
        f"{figures['images_per_second']:.1f} images/s{_per_gpu(figures)}, "
        f"data {figures['data_wait']:.0%}, {figures['peak_memory_gb']:.1f} GB"
        f"{_slowest(figures)}"
    )


def _per_gpu(figures: Mapping[str, Any]) -> str:
    """Of several ranks, images/s of each."""
    if figures.get("ranks", 1) == 1:
        return ""
    return f" ({figures['images_per_second_per_gpu']:.1f} each)"


def _slowest(figures: Mapping[str, Any]) -> str:
    """The rank that all wait for, once it takes noticeably longer than the others."""
    if figures.get("slowest_rank_excess", 0.0) < _SLOW:
        return ""
    return (
        f", rank {figures['slowest_rank']} is {figures['slowest_rank_excess']:.0%} slower than "
        "the median"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
