"""Fine-tune a model at a higher resolution, with its heads and prototypes.

WEIGHTS is a run directory or one of its checkpoints/<step> folders, of which student, teacher and
heads are taken; or a file of weights (.pth as released, .safetensors as exported), whose network
student and teacher both become. A file without heads gets random ones, and the log says so. The
optimizer and the schedules begin anew; the position embedding is resized once.

Everything else is as in pretraining: what the output directory holds, how a run is resumed, and
values of the configuration as section.key=value. Two stages, the second from the first's output:

  franca-fast finetune runs/vitb14 --config-file vitb14_364px --output-dir runs/vitb14_364px
  franca-fast finetune runs/vitb14_364px --config-file vitb14_518px --output-dir runs/vitb14_518px
"""

from __future__ import annotations

import argparse

from franca_fast.cli.common import add_training_arguments, is_first_process, positive

GROUP = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="a run directory, one of its checkpoints, or a .safetensors or .pth file",
    )
    parser.add_argument(
        "--img-size",
        type=positive,
        metavar="PIXELS",
        help="side of the global crops (default: crops.global_crops_size of the configuration)",
    )
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.training import finetune

    result = finetune(
        args.weights,
        args.config_file,
        args.output_dir,
        img_size=args.img_size,
        overrides=args.overrides,
        resume=not args.no_resume,
    )
    if result.exported is not None and is_first_process():
        print(f"exported teacher: {result.exported}")
    return 0
