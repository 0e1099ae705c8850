"""Convert weights: any spelling to safetensors and JSON, or back to a released-style .pth.

franca-fast convert franca_vitb14_In21K.pth vitb.safetensors
franca-fast convert franca_vitg14_Laion600M_chunked.tar.gz.part_aa vitg.safetensors
franca-fast convert teacher_checkpoint.pth teacher.safetensors --keep-heads
franca-fast convert runs/mine mine.pth --checkpoint newest --keep-heads
"""

from __future__ import annotations

import argparse

from franca_fast.cli.common import add_checkpoint_arguments, add_overwrite_argument, positive

GROUP = "weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a file of weights, an archive, a run or Hugging Face folder, or a released name",
    )
    parser.add_argument("output", metavar="OUTPUT", help="a .safetensors or a .pth file")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--keep-heads",
        action="store_true",
        help="also keep the heads that the file or the checkpoint holds",
    )
    parser.add_argument(
        "--num-heads",
        type=positive,
        metavar="N",
        help="attention heads, for an architecture that is not among those of franca-fast models",
    )
    add_overwrite_argument(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.hub import convert

    architecture = {"num_heads": args.num_heads} if args.num_heads else None
    written = convert(
        args.source,
        args.output,
        keep_heads=args.keep_heads,
        architecture=architecture,
        overwrite=args.overwrite,
        checkpoint=args.checkpoint,
        network=args.network,
    )
    print(f"{written.path}: backbone" + "".join(f", {head}" for head in written.heads))
    if written.not_stored:
        print(f"To load it: load_model('{written.path}', architecture={written.not_stored})")
    return 0
