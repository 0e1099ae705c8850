"""Export a backbone for use elsewhere.

  franca-fast export runs/mine --format safetensors --output mine.safetensors
  franca-fast export franca_vitb14 --format huggingface --output franca-vitb14
  franca-fast export runs/mine --format onnx --img-size 224x308 --output mine.onnx
  franca-fast export runs/mine --format torch-export --batch-size 8 --output mine.pt2
  franca-fast export runs/mine --rasa rasa.pth --format matrix --output removal.safetensors

ONNX and torch-export programs are for one image size and give "cls_token" and "patch_tokens".
With --rasa the removal of positions is part of what is written.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from franca_fast.cli.common import add_overwrite_argument, add_weights_arguments, positive

if TYPE_CHECKING:
    from franca_fast.models import VisionTransformer

GROUP = "weights"
_FORMATS = ("safetensors", "huggingface", "onnx", "torch-export", "matrix")
_PROGRAMS = ("onnx", "torch-export")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    parser.add_argument("--format", required=True, choices=_FORMATS, help="what to write")
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="a file, or a folder for huggingface"
    )
    parser.add_argument(
        "--img-size",
        type=image_size,
        metavar="PIXELS",
        help="side, or HEIGHTxWIDTH, for programs and the position embedding of huggingface "
        "(default: the model's own)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="for programs: images in a batch (default: any number)",
    )
    add_overwrite_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.batch_size and args.format not in _PROGRAMS:
        args.parser.error(f"--batch-size is for {' and '.join(_PROGRAMS)}")
    if args.img_size and args.format not in (*_PROGRAMS, "huggingface"):
        args.parser.error(f"--img-size is for huggingface, {' and '.join(_PROGRAMS)}")
    if args.format == "huggingface" and isinstance(args.img_size, tuple):
        args.parser.error("--img-size: the position embedding of huggingface is for squares")
    from franca_fast.hub import load_model
    from franca_fast.hub.export import check_export

    check_export(args.output, args.format, overwrite=args.overwrite)
    model = load_model(
        args.model,
        weights=args.weights,
        rasa=args.rasa,
        checkpoint=args.checkpoint,
        network=args.network,
    )
    print(_write(model, args))
    return 0


def image_size(text: str) -> int | tuple[int, int]:
    """Type of an option that is a side, or HEIGHTxWIDTH.

    Example:
        >>> image_size("224"), image_size("140x224")
        (224, (140, 224))
    """
    sides = [positive(part) for part in text.split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text}; accepted: PIXELS or HEIGHTxWIDTH")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _write(model: VisionTransformer, args: argparse.Namespace) -> Any:
    from franca_fast import hub

    if args.format == "safetensors":
        return hub.export_safetensors(model, args.output, overwrite=args.overwrite)
    if args.format == "matrix":
        return hub.export_matrix(model, args.output, overwrite=args.overwrite)
    options = {"img_size": args.img_size, "overwrite": args.overwrite}
    if args.format == "huggingface":
        return hub.export_huggingface(model, args.output, **options)
    write = hub.export_onnx if args.format == "onnx" else hub.export_torch
    return write(model, args.output, batch_size=args.batch_size, **options)
