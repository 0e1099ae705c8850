"""Draw what a model sees: `visualize pca` colours patches by principal components.

For instance: franca-fast visualize pca franca_demo images/ --output pictures/
"""

from __future__ import annotations

import argparse

from franca_fast.cli.common import (
    Parser,
    add_decoding_arguments,
    add_model_arguments,
    add_overwrite_argument,
    add_precision_argument,
    add_source_argument,
    decoding_options,
    load_encoder,
    positive,
    warnings_at_the_end,
)

GROUP = "use"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)
    pca = kinds.add_parser(
        "pca",
        help="patch tokens as colours, one picture per image",
        description="Writes each image with its patch tokens beside it, coloured by the three "
        "principal components of all patch tokens of all the images.",
    )
    add_model_arguments(pca)
    add_source_argument(pca)
    pca.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures")
    pca.add_argument("--limit", type=positive, default=16, help="images at most (default: 16)")
    add_overwrite_argument(pca)
    add_precision_argument(pca)
    add_decoding_arguments(pca)


def run(args: argparse.Namespace) -> int:
    from franca_fast.evaluation import visualize_pca
    from franca_fast.evaluation.encoders import precision_of
    from franca_fast.evaluation.pictures import check_can_draw
    from franca_fast.files import check_folder

    check_can_draw()
    check_folder(args.output, overwrite=args.overwrite)
    decoding = decoding_options(args)
    model = load_encoder(args)
    precision = precision_of(model, args.precision)
    with warnings_at_the_end():
        paths = visualize_pca(
            model,
            args.source,
            args.output,
            img_size=args.img_size,
            limit=args.limit,
            overwrite=args.overwrite,
            precision=precision,
            **decoding,
        )
    made = f"{len(paths)} pictures, {paths[0].name} to {paths[-1].name}"
    print(f"{args.output}: {made}, computed in {precision}")
    if len(paths) == args.limit:
        print(f"these are the first {args.limit} that could be used; --limit N allows more")
    return 0
