"""Measure a model: `eval PROTOCOL MODEL` runs one of the published evaluations.

For instance: franca-fast eval knn franca_demo --train train/ --test val/ --nested
All protocols, with what they read: franca-fast eval --list
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from franca_fast.cli.common import (
    add_decoding_arguments,
    add_model_arguments,
    add_overwrite_argument,
    add_precision_argument,
    add_reading_arguments,
    decoding_options,
    load_encoder,
    positive,
    positive_number,
    table,
    warnings_at_the_end,
)
from franca_fast.errors import InputError

if TYPE_CHECKING:
    from franca_fast.evaluation import Result
    from franca_fast.evaluation.protocol import Protocol, Reading

GROUP = "use"
# What protocols read. Which of them reads what, `--list` says.
_ROLES = {
    "train": "images to learn from: the memory of kNN and in-context, the probes' training set",
    "test": "images to measure on",
    "validation": "images on which settings are chosen",
    "further": "other sets to measure on, each by itself",
    "index": "images to search in",
    "query": "images to search with",
    "ood": "images of other kinds; each source is a set of its own",
    "data": "a data set that the protocol reads whole",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action=_List, help="print the protocols, and exit")
    parser.add_argument("protocol", metavar="PROTOCOL", help="see --list")
    add_model_arguments(parser)
    for role, what in _ROLES.items():
        parser.add_argument(f"--{role}", nargs="+", metavar="SOURCE", help=what)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the protocol; with 'help' for NAME=VALUE they are printed",
    )
    parser.add_argument(
        "--k", type=positive, nargs="+", help="of knn: numbers of neighbours (10 20 100 200)"
    )
    parser.add_argument(
        "--temperature", type=positive_number, metavar="T", help="of the votes of knn (0.07)"
    )
    widths = parser.add_mutually_exclusive_group()
    widths.add_argument(
        "--nested", action="store_true", help="also with features cut to d/16, d/8, d/4 and d/2"
    )
    widths.add_argument("--dims", metavar="M,...", help="with features cut to these widths")
    parser.add_argument("--output", metavar="FILE", help="also write the result, .json or .md")
    add_overwrite_argument(parser)
    parser.add_argument(
        "--features-cache",
        metavar="DIR",
        help="keep features there; an interrupted evaluation goes on from them",
    )
    add_reading_arguments(parser)
    add_precision_argument(parser)
    add_decoding_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.evaluation.evaluate import evaluate, find_protocol
    from franca_fast.evaluation.feature_cache import FeatureCache
    from franca_fast.evaluation.protocol import check_data, check_roles, parse_settings
    from franca_fast.evaluation.requests import parse_dims
    from franca_fast.evaluation.result import check_result_file
    from franca_fast.files import save_or_keep
    from franca_fast.models import default_nesting_dims

    protocol = find_protocol(args.protocol)
    if args.set == ["help"]:
        print(_settings_table(protocol))
        return 0
    if args.output is not None:
        check_result_file(args.output, overwrite=args.overwrite)
    # What is wrong is refused before the model is loaded.
    reading = _reading(args)
    if args.features_cache is not None:
        FeatureCache(args.features_cache)
    settings = _settings(args)
    parse_settings(protocol.settings, settings)
    sources = {role: getattr(args, role) for role in _ROLES if getattr(args, role) is not None}
    check_data(protocol, check_roles(protocol, sources))
    dims = None if args.dims is None else parse_dims(args.dims)
    model = load_encoder(args)
    if args.nested:
        dims = default_nesting_dims(model.embed_dim)
    named = args.model if args.weights is None else f"{args.model} {args.weights}"
    with warnings_at_the_end():
        result = evaluate(
            protocol.name, model, sources, settings, dims=dims, reading=reading, name=named
        )
    print("\n".join(_lines(result)))
    if args.output is not None:
        save_or_keep(args.output, lambda file: result.save(file, overwrite=args.overwrite))
        print(f"written to {args.output}")
    return 0


def _reading(args: argparse.Namespace) -> Reading:
    from franca_fast.evaluation.protocol import Reading

    return Reading(
        args.batch_size,
        args.num_workers,
        args.precision,
        progress=True,
        features_cache=args.features_cache,
        decoding=decoding_options(args),
    )


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    settings = dict[str, Any]()
    for given in args.set:
        name, equals, value = given.partition("=")
        if not equals:
            raise InputError(f"--set: '{given}'; accepted: NAME=VALUE")
        settings[name] = value
    for name, value in (
        ("img_size", args.img_size),
        ("ks", args.k and tuple(args.k)),
        ("temperature", args.temperature),
    ):
        if value is not None:
            settings[name] = value
    return settings


def _lines(result: Result) -> list[str]:
    """What is printed of a result."""
    from franca_fast.data.accounting import ImageAccount

    counts = ", ".join(f"{facts.get('images', '?')} {role}" for role, facts in result.data.items())
    lines = [
        f"{result.protocol}, per cent: {counts} images; features computed in "
        f"{result.encoder['precision']}",
        result.table(),
    ]
    if result.changed:
        changed = ", ".join(f"{name} {value}" for name, value in result.changed.items())
        lines.append(f"settings that differ from the protocol's: {changed}")
    for role, facts in result.data.items():
        if "account" in facts:
            account = ImageAccount.from_dict(facts["account"])
            lines += [f"{role}: {line}" for line in account.lines()]
    return lines


def _settings_table(protocol: Protocol) -> str:
    rows = [[entry.name, entry.default] for entry in dataclasses.fields(protocol.settings)]
    return table(["setting", "default"], rows)


class _List(argparse.Action):
    """Prints the protocols; works without the arguments that are otherwise required."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> NoReturn:
        from franca_fast.evaluation.evaluate import protocols

        rows = []
        for name, protocol in protocols().items():
            reads = [f"--{r.name}" if r.required else f"[--{r.name}]" for r in protocol.roles]
            rows.append([name, " ".join(reads), protocol.summary])
        print(table(["protocol", "reads", "what it measures"], rows))
        parser.exit()
