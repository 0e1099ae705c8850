"""Measure a model: `eval knn` classifies images by their nearest neighbours.

For instance: franca-fast eval knn franca_demo --train train/ --test val/ --nested
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from franca_fast.cli.common import (
    Parser,
    add_decoding_arguments,
    add_model_arguments,
    add_overwrite_argument,
    add_precision_argument,
    add_reading_arguments,
    decoding_options,
    load_model,
    positive,
    positive_number,
    table,
    warnings_at_the_end,
)
from franca_fast.spelling import spell

if TYPE_CHECKING:
    from franca_fast.evaluation import Embeddings
    from franca_fast.models import VisionTransformer

GROUP = "use"
_UNNAMED = "classes are numbers without names"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)
    knn = kinds.add_parser(
        "knn",
        help="weighted k-nearest-neighbour accuracy of the CLS features",
        description="Weighted kNN on frozen CLS features, as DINO and DINOv2 report it.",
    )
    add_model_arguments(knn)
    for role in ("train", "test"):
        knn.add_argument(
            f"--{role}",
            required=True,
            nargs="+",
            metavar="SOURCE",
            help=f"labelled {role} images: a folder of class folders, or shards with .cls members",
        )
    knn.add_argument(
        "--k",
        type=positive,
        nargs="+",
        default=[10, 20, 100, 200],
        help="numbers of neighbours (default: 10 20 100 200)",
    )
    knn.add_argument(
        "--temperature",
        type=positive_number,
        default=0.07,
        metavar="T",
        help="of the votes (default: 0.07)",
    )
    knn.add_argument(
        "--nested", action="store_true", help="also with features cut to d/16, d/8, d/4 and d/2"
    )
    knn.add_argument("--output", metavar="FILE", help="also write the accuracies as JSON")
    add_overwrite_argument(knn)
    add_reading_arguments(knn)
    add_precision_argument(knn)
    add_decoding_arguments(knn)


def run(args: argparse.Namespace) -> int:
    from franca_fast.evaluation import knn
    from franca_fast.evaluation.class_matching import check_sources, match_classes
    from franca_fast.files import check_file, save_or_keep, write_json
    from franca_fast.models import default_nesting_dims

    if args.output is not None:
        check_file(args.output, overwrite=args.overwrite)
    decoding = decoding_options(args)  # refused before the model is loaded
    check_sources(args.train, args.test)
    model = load_model(args)
    dims = default_nesting_dims(model.embed_dim) if args.nested else (model.embed_dim,)
    with warnings_at_the_end():
        test, train = (_embed(model, source, args, decoding) for source in (args.test, args.train))
        accuracies = knn(train, test, args.k, args.temperature, dims)
    matched = match_classes(train, test)
    named = f"{len(matched.class_names)} classes" if matched.class_names else _UNNAMED
    print(
        f"kNN accuracy in per cent: {len(train)} training images, {len(test)} test images, "
        f"{named}, features computed in {train.facts['precision']}"
    )
    rows = [[m, *(f"{at_k[k]:.1f}" for k in args.k)] for m, at_k in accuracies.items()]
    print(table(["dimensions", *(f"k={k}" for k in args.k)], rows, numeric=1 + len(args.k)))
    for role, part in (("train", train), ("test", test)):
        print("\n".join(f"{role}: {line}" for line in part.account.lines()))
    if args.output is not None:
        result = {
            "protocol": "knn",
            "accuracy": accuracies,
            "settings": {"k": args.k, "temperature": args.temperature},
            "class_names": [spell(name) for name in matched.class_names],
            "classes_without_test_images": [spell(name) for name in matched.untested],
            "train": train.facts,
            "test": test.facts,
        }
        save_or_keep(args.output, lambda file: write_json(file, result))
        print(f"written to {args.output}")
    return 0


def _embed(
    model: VisionTransformer,
    source: list[str],
    args: argparse.Namespace,
    decoding: dict[str, Any],
) -> Embeddings:
    from franca_fast.evaluation import embed

    return embed(
        model,
        source,
        img_size=args.img_size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        precision=args.precision,
        **decoding,
    )
