"""Pretraining, from top to bottom: resume, train, log, checkpoint, export."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from franca_fast.errors import FrancaError
from franca_fast.models import VisionTransformer
from franca_fast.training.checkpoint import load_newest, remove_leftovers
from franca_fast.training.config import Config
from franca_fast.training.config_files import load_config, to_yaml
from franca_fast.training.progress import Progress, run_log
from franca_fast.training.recorder import Recorder
from franca_fast.training.run import Run
from franca_fast.training.run_directory import RunDirectory
from franca_fast.training.signals import StopSignals

Evaluate = Callable[[int, VisionTransformer], Mapping[str, float]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """What a run left behind.

    Attributes:
        output_dir: the run's folder.
        steps: steps done in all.
        metrics: the last step's line of metrics.jsonl; empty when no step was done.
        exported: the teacher's weights (.safetensors, its architecture in .json beside it); None
            when a signal stopped the run before its end.
        stopped_by: name of the signal that stopped the run, or None.
    """

    output_dir: Path
    steps: int
    metrics: Mapping[str, Any]
    exported: Path | None
    stopped_by: str | None


def pretrain(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = True,
    evaluate: Evaluate | None = None,
    verbose: bool = True,
) -> PretrainResult:
    """Pretrains a nested student and teacher, or goes on with a run that was interrupted.

    All input is checked before anything is written. A run whose folder holds the same
    configuration is resumed at its newest whole checkpoint and continues exactly as if it had
    never stopped. SIGTERM and SIGUSR1 finish the step, write a checkpoint and return; Ctrl-C does
    the same and then raises KeyboardInterrupt, a second one at once.

    Args:
        config: as in `load_config`: a file, the name of a recipe, a mapping or a `Config`.
        output_dir: the run's folder; default `train.output_dir`.
        overrides: strings "section.key=value".
        resume: false moves a run that is there into `previous-<n>/` and starts anew.
        evaluate: called with the number of steps done and the teacher's backbone (on its device,
            in evaluation mode, not to be changed) before the first step, every
            `evaluation.eval_period_iterations` steps and after the last one; what it returns goes
            to metrics.jsonl.
        verbose: report on stderr; otherwise only warnings are shown.

    Returns:
        where the results are.

    Raises:
        InputError: wrong configuration, data or folder; nothing was written.
        FrancaError: too many non-finite steps, or a checkpoint that cannot be written.

    Example:
        >>> short = ["train.total_steps=2", "optim.warmup_epochs=0"]
        >>> pretrain("demo", "run", overrides=short, verbose=False).exported.name
        'teacher.safetensors'
    """
    checked = load_config(config, overrides)
    directory = RunDirectory(output_dir or checked.train.output_dir, checked, resume=resume)
    try:
        with closing(Run(checked, fresh=not directory.resumes)) as run, StopSignals() as signals:
            directory.create()
            with run_log(directory.log_file, verbose=verbose):
                logger.info("configuration:\n%s", to_yaml(checked))
                bar = verbose and sys.stderr.isatty()
                result = _run(run, directory, signals, evaluate, bar=bar)
    except FrancaError:
        directory.remove_unstarted()
        raise
    finally:
        directory.close()
    if signals.received is signal.SIGINT:
        raise KeyboardInterrupt
    return result


def _run(
    run: Run,
    directory: RunDirectory,
    signals: StopSignals,
    evaluate: Evaluate | None,
    *,
    bar: bool,
) -> PretrainResult:
    config, total = run.config, run.config.total_steps
    remove_leftovers(directory.checkpoints)
    checkpoint = load_newest(directory.checkpoints)
    counters = run.start() if checkpoint is None else run.resume(checkpoint)
    recorder = Recorder(
        directory,
        run.device,
        last_step=-1 if checkpoint is None else run.step,
        counters=counters,
        log_every=config.train.log_every,
        tensorboard=config.train.tensorboard,
    )
    progress = Progress(run.step, total, bar=bar)
    try:
        if checkpoint is None:
            _evaluate(run, recorder, evaluate)
        _train(run, directory, signals, recorder, progress, evaluate)
        finished = run.step == total
        exported = run.export(directory.exported) if finished else None
    finally:
        progress.close()
        recorder.close()
    stopped_by = None if signals.received is None else signals.received.name
    end = f"exported the teacher to {exported}" if finished else f"stopped by {stopped_by}"
    logger.info("%s after step %d of %d", end, run.step, total)
    return PretrainResult(directory.path, run.step, recorder.last, exported, stopped_by)


def _train(
    run: Run,
    directory: RunDirectory,
    signals: StopSignals,
    recorder: Recorder,
    progress: Progress,
    evaluate: Evaluate | None,
) -> None:
    config, total = run.config, run.config.total_steps
    period = config.evaluation.eval_period_iterations
    saved_step, saved_time = run.step, time.monotonic()
    recorder.start_clock()
    while run.step < total and signals.received is None:
        batch, waited = run.next_batch()
        interval = (run.step + 1) % config.train.log_every == 0 or run.step + 1 == total
        output, values = run.train_on(batch, diagnose=interval)
        recorder.add(run.step, output, values, batch, waited=waited)
        # Reading results makes the host wait for a GPU, so there it is done at intervals only.
        if interval or run.device.type == "cpu":
            figures = recorder.flush()
            _check_finite(run, recorder, directory)
            remaining = (total - run.step) * recorder.seconds_per_step()
            progress.show(run.step, figures, remaining=remaining)
        evaluates = run.step == total or (period > 0 and run.step % period == 0)
        if evaluates:
            _evaluate(run, recorder, evaluate)
        if evaluates and run.step < total:
            run.export(directory.exported)
        due = run.step % config.checkpoint_every == 0
        if due or _minutes_since(saved_time) > (config.train.checkpoint_minutes or math.inf):
            _save(run, recorder, directory)
            saved_step, saved_time = run.step, time.monotonic()
        if evaluates or saved_step == run.step:
            recorder.start_clock()
    if saved_step != run.step:
        _save(run, recorder, directory)


def _save(run: Run, recorder: Recorder, directory: RunDirectory) -> None:
    # The metrics first: after a resume they must reach at least to the checkpoint's step.
    recorder.force()
    run.save(directory.checkpoints, recorder.counters())


def _evaluate(run: Run, recorder: Recorder, evaluate: Evaluate | None) -> None:
    if evaluate is not None:
        recorder.add_evaluation(run.step, evaluate(run.step, run.model.teacher.backbone))


def _check_finite(run: Run, recorder: Recorder, directory: RunDirectory) -> None:
    limit = run.config.train.max_nonfinite_steps
    if recorder.skipped_in_row >= limit:
        raise FrancaError(
            f"stopped after step {run.step}: the loss or a gradient was not finite in the last "
            f"{recorder.skipped_in_row} steps (train.max_nonfinite_steps is {limit}); they changed "
            f"nothing, and the checkpoints in '{directory.checkpoints}' are good"
        )


def _minutes_since(moment: float) -> float:
    return (time.monotonic() - moment) / 60.0
