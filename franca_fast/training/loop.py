"""Pretraining, from top to bottom: resume, train, log, checkpoint, export."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from franca_fast.config.files import load_config, to_yaml
from franca_fast.config.schema import Config
from franca_fast.errors import FrancaError
from franca_fast.hub.checkpoint_files import load_newest
from franca_fast.training.checkpoints.writer import CheckpointWriter, remove_leftovers
from franca_fast.training.distributed.world import World
from franca_fast.training.evaluations import Evaluate, configured_evaluation
from franca_fast.training.reporting.progress import Progress, run_log
from franca_fast.training.reporting.recorder import Recorder
from franca_fast.training.run import Run
from franca_fast.training.run_directory import RunDirectory
from franca_fast.training.signals import StopSignals

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

    Under torchrun all processes train one model (see `parallelize`), and a signal to any of them
    stops all at the same step. Rank 0 writes the run's folder and evaluates.

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
        FrancaError: too many non-finite steps, a checkpoint that cannot be written, or another
            process that has gone.

    Example:
        >>> short = ["train.total_steps=2", "optim.warmup_epochs=0"]
        >>> pretrain("demo", "run", overrides=short, verbose=False).exported.name
        'teacher.safetensors'
    """
    checked = load_config(config, overrides)
    gpus = checked.train.device != "cpu" and torch.cuda.is_available()
    world = World.join("cuda" if gpus else "cpu", checked.train.timeout_minutes)
    try:
        with StopSignals(alone=world.size == 1) as signals:
            result = _open(checked, output_dir, world, signals, evaluate, resume, verbose)
    finally:
        world.close()
    if signals.received is signal.SIGINT:
        raise KeyboardInterrupt
    return result


def _open(
    config: Config,
    output_dir: str | os.PathLike[str] | None,
    world: World,
    signals: StopSignals,
    evaluate: Evaluate | None,
    resume: bool,
    verbose: bool,
) -> PretrainResult:
    """Checks everything, makes the run's folder and runs; one folder for all ranks."""
    path = output_dir or config.train.output_dir
    with world.together():
        evaluate = configured_evaluation(config, evaluate)
        directory = RunDirectory(path, config, resume=resume, rank=world.rank)
    try:
        fresh = not world.all_gather_object(directory.resumes)[0]
        with closing(Run(config, world, fresh=fresh)) as run:
            with world.together():
                directory.create()
            with run_log(directory.log_file, rank=world.rank, verbose=verbose):
                if world.is_first:
                    logger.info("configuration:\n%s", to_yaml(config))
                bar = verbose and world.is_first and sys.stderr.isatty()
                return _run(run, directory, signals, evaluate, bar=bar)
    except FrancaError:
        directory.remove_unstarted()
        raise
    finally:
        directory.close()


def _run(
    run: Run,
    directory: RunDirectory,
    signals: StopSignals,
    evaluate: Evaluate | None,
    *,
    bar: bool,
) -> PretrainResult:
    config, world, total = run.config, run.world, run.config.total_steps
    with world.together():
        if world.is_first:
            remove_leftovers(directory.checkpoints)
    checkpoint = load_newest(directory.checkpoints, world)
    counters = run.start() if checkpoint is None else run.resume(checkpoint)
    with world.together():
        recorder = Recorder(
            directory,
            run.device,
            world,
            run.stopwatch,
            last_step=-1 if checkpoint is None else run.step,
            counters=counters,
            config=config,
        )
    writer = CheckpointWriter(
        directory.checkpoints,
        keep=config.train.checkpoint_keep,
        world=world,
        timeout_minutes=config.train.timeout_minutes,
    )
    progress = Progress(run.step, total, bar=bar, shown=world.is_first)
    try:
        if checkpoint is None:
            _evaluate(run, recorder, evaluate)
        _train(run, directory, signals, recorder, progress, writer, evaluate)
        _finish_checkpoint(run, writer)
        finished = run.step == total
        exported = run.export(directory.exported) if finished else None
    finally:
        writer.close()
        progress.close()
        recorder.close()
    stopped_by = None if signals.received is None else signals.received.name
    end = f"exported the teacher to {exported}" if finished else f"stopped by {stopped_by}"
    if world.is_first:
        logger.info("%s after step %d of %d", end, run.step, total)
    return PretrainResult(directory.path, run.step, recorder.last, exported, stopped_by)


def _train(
    run: Run,
    directory: RunDirectory,
    signals: StopSignals,
    recorder: Recorder,
    progress: Progress,
    writer: CheckpointWriter,
    evaluate: Evaluate | None,
) -> None:
    config, total = run.config, run.config.total_steps
    period = config.evaluation.eval_period_iterations
    saved_step, saved_time = run.step, time.monotonic()
    recorder.start_clock()
    while run.step < total:
        minutes = (time.monotonic() - saved_time) / 60.0
        late = minutes > (config.train.checkpoint_minutes or math.inf)
        # All ranks act on the same news: what any of them has received, and rank 0's clock.
        failed, due = run.world.all_reduce([writer.failed, late and run.world.is_first])
        if failed:
            _finish_checkpoint(run, writer)
        if signals.agree(run.world):
            break
        batches, waited = run.next_batches()
        interval = (run.step + 1) % config.train.log_every == 0 or run.step + 1 == total
        output, values = run.train_on(batches, diagnose=interval)
        recorder.add(run.step, output, values, batches, waited=waited)
        # Reading results makes the host wait for a GPU, so there it is done at intervals only.
        if interval or run.device.type == "cpu":
            figures = recorder.flush(interval=interval)
            _check_finite(run, recorder, directory)
            progress.show(run.step, figures, seconds_per_step=recorder.seconds_per_step())
        evaluates = run.step == total or (period > 0 and run.step % period == 0)
        if evaluates:
            _finish_checkpoint(run, writer)
            _evaluate(run, recorder, evaluate)
        if evaluates and run.step < total:
            run.export(directory.exported)
        if due or run.step % config.checkpoint_every == 0:
            _save(run, recorder, writer)
            saved_step, saved_time = run.step, time.monotonic()
        if evaluates or saved_step == run.step:
            recorder.start_clock()
    if saved_step != run.step:
        _save(run, recorder, writer)


def _save(run: Run, recorder: Recorder, writer: CheckpointWriter) -> None:
    # The metrics first: after a resume they must reach at least to the checkpoint's step.
    recorder.force()
    with run.world.together():
        run.save(writer, recorder.counters())


def _finish_checkpoint(run: Run, writer: CheckpointWriter) -> None:
    """Waits until all ranks' parts of the last checkpoint are on the disk, or raises on all."""
    if run.world.all_reduce([writer.failed])[0]:
        writer.give_up()
    with run.world.together():
        writer.wait()


def _evaluate(run: Run, recorder: Recorder, evaluate: Evaluate | None) -> None:
    if evaluate is None:
        return
    backbone = run.teacher_backbone()
    figures = run.world.on_first(lambda: evaluate(run.step, backbone))
    recorder.add_evaluation(run.step, figures)


def _check_finite(run: Run, recorder: Recorder, directory: RunDirectory) -> None:
    limit = run.config.train.max_nonfinite_steps
    if recorder.skipped_in_row >= limit:
        raise FrancaError(
            f"stopped after step {run.step}: the loss or a gradient was not finite in the last "
            f"{recorder.skipped_in_row} steps (train.max_nonfinite_steps is {limit}); they changed "
            f"nothing, and the checkpoints in '{directory.checkpoints}' are good"
        )
