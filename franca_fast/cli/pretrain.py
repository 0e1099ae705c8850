"""Pretrain a model: student, teacher, nested prototype heads.

Writes config.yaml, train.log, metrics.jsonl, checkpoints/ and exported/ into the output directory.
The same command continues a run that was interrupted. Values of the configuration follow as
section.key=value, for instance:

  franca-fast pretrain --config-file demo --output-dir runs/first train.batch_size_per_gpu=32
"""

from __future__ import annotations

import argparse

from franca_fast.cli.common import add_training_arguments, is_first_process

GROUP = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.training import pretrain

    result = pretrain(
        args.config_file,
        output_dir=args.output_dir,
        overrides=args.overrides,
        resume=not args.no_resume,
    )
    if result.exported is not None and is_first_process():
        print(f"exported teacher: {result.exported}")
    return 0
