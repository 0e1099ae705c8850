"""Pretrain a model: student, teacher, nested prototype heads.

Writes config.yaml, train.log, metrics.jsonl, checkpoints/ and exported/ into the output directory.
The same command continues a run that was interrupted. Values of the configuration follow as
section.key=value, for instance:

  franca-fast pretrain --config-file demo --output-dir runs/first train.batch_size_per_gpu=32
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="a YAML configuration, or the name of a recipe of this package (default: DINOv2's)",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="the run directory (default: train.output_dir)"
    )
    parser.add_argument(
        "--no-resume",
        action="store_true",
        help="start from the beginning; a run that is there is moved aside, not deleted",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", default=[], help="values of the configuration"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from franca_fast.training import pretrain

    result = pretrain(
        args.config_file,
        output_dir=args.output_dir,
        overrides=args.overrides,
        resume=not args.no_resume,
    )
    if result.exported is not None:
        print(f"exported teacher: {result.exported}")
    return 0
