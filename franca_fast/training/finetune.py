"""Fine-tuning at a higher resolution: pretraining that starts from weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from franca_fast.config.files import load_config
from franca_fast.config.schema import Config
from franca_fast.training.evaluations import Evaluate
from franca_fast.training.loop import PretrainResult, pretrain


def finetune(
    weights: str | os.PathLike[str],
    config: Config | Mapping[str, Any] | str | Path | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    img_size: int | None = None,
    overrides: Sequence[str] = (),
    resume: bool = True,
    evaluate: Evaluate | None = None,
    verbose: bool = True,
) -> PretrainResult:
    """Goes on training a model at another resolution, with schedules of its own.

    It is `pretrain` of a configuration whose MODEL.WEIGHTS is `weights`: student, teacher and heads
    with their prototypes come from there, the optimizer is new and the schedules begin at step 0.
    The position embedding is resized once, when the run begins, and kept at the new size. A run
    that was interrupted is resumed exactly, and no longer needs `weights`.

    Args:
        weights: what to start from: a run's folder or one of its checkpoints; or a file (.pth as
            released, .safetensors as exported), whose network student and teacher both become. A
            file without heads gets random ones, and a warning says so.
        config: as in `load_config`; its architecture and heads must be those of the weights.
        output_dir: the new run's folder; default `train.output_dir`.
        img_size: side of the global crops in pixels; default `crops.global_crops_size`.
        overrides: strings "section.key=value".
        resume: as in `pretrain`.
        evaluate: as in `pretrain`.
        verbose: as in `pretrain`.

    Returns:
        where the results are.

    Raises:
        InputError: as `pretrain`, or weights that do not fit the configuration: the keys that
            differ are named. Nothing was written.
        FrancaError: as `pretrain`.

    Example:
        >>> from franca_fast.training import pretrain
        >>> short = ["train.total_steps=1", "optim.warmup_epochs=0", "train.batch_size_per_gpu=4"]
        >>> run = pretrain("demo", "run", overrides=short, verbose=False).output_dir
        >>> finetune(run, "demo_highres", "run_56px", overrides=short, verbose=False).steps
        1
    """
    size = [] if img_size is None else [f"crops.global_crops_size={img_size}"]
    checked = load_config(config, [*size, *overrides])
    checked.MODEL.WEIGHTS = _absolute(os.fspath(weights))
    checked.student.pretrained_weights = ""
    checked.train.high_resolution_finetune = True
    return pretrain(checked, output_dir, resume=resume, evaluate=evaluate, verbose=verbose)


def _absolute(path: str) -> str:
    """The path as the configuration keeps it, so that a resume from another folder finds it equal.

    One with an environment variable stays as it is; it is expanded when it is used.
    """
    return path if "$" in path else os.path.abspath(os.path.expanduser(path))
