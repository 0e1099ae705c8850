"""Compute features of images, folders or shards into a file.

The file holds the names of the images, their features and, where known, their labels:

  franca-fast embed franca_demo images/ --output features.npz
  franca-fast embed vit_base --weights vitb.pth 'shards/{0000..0009}.tar' --output features.parquet
"""

from __future__ import annotations

import argparse

from franca_fast.cli.common import (
    add_decoding_arguments,
    add_model_arguments,
    add_overwrite_argument,
    add_precision_argument,
    add_reading_arguments,
    add_source_argument,
    decoding_options,
    load_encoder,
    warnings_at_the_end,
)

GROUP = "use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_source_argument(parser)
    parser.add_argument(
        "--output", required=True, metavar="FILE", help=".npz, .parquet or .safetensors"
    )
    parser.add_argument(
        "--pooling",
        default="cls",
        help="cls (default), patch_mean or cls_patch_mean (both, side by side)",
    )
    add_overwrite_argument(parser)
    add_reading_arguments(parser)
    add_precision_argument(parser)
    add_decoding_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.evaluation import check_output, check_pooling, embed

    check_output(args.output, overwrite=args.overwrite)
    check_pooling(args.pooling)
    decoding = decoding_options(args)
    with warnings_at_the_end():
        embeddings = embed(
            load_encoder(args),
            args.source,
            output=args.output,
            img_size=args.img_size,
            batch_size=args.batch_size,
            pooling=args.pooling,
            num_workers=args.num_workers,
            overwrite=args.overwrite,
            precision=args.precision,
            **decoding,
        )
    n, width = embeddings.features.shape
    computed = embeddings.facts["precision"]
    print(f"{args.output}: {n} images, {width} features each, computed in {computed}")
    print("\n".join(embeddings.account.lines()))
    return 0
