"""Pack images into shards, check them, count what is in them.

franca-fast shards pack photos/ --output shards/ --max-side 512
franca-fast shards check 'shards/shard-{000000..000041}.tar'
franca-fast shards stats shards/ --colours
"""

from __future__ import annotations

import argparse
import codecs
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from franca_fast.cli.common import (
    Parser,
    add_decoding_arguments,
    decoding_options,
    positive,
    table,
    warnings_at_the_end,
)
from franca_fast.errors import InputError
from franca_fast.spelling import spell

if TYPE_CHECKING:
    from franca_fast.data import ShardStatistics

GROUP = "data"
_BAD_SHOWN, _CLASSES_SHOWN = 100, 10
_HEADERS_ONLY = "Only the headers of images were read: shards check also finds damaged pixels"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)
    summaries = {
        _pack: ("pack", "write images as WebDataset shards; the same call again finishes the rest"),
        _check: (
            "check",
            "decode every image, list what is not used and why; exit code 1 if any",
        ),
        _stats: ("stats", "count images, sizes, formats and classes"),
    }
    for function, (name, summary) in summaries.items():
        kind = kinds.add_parser(name, help=summary, description=summary)
        kind.add_argument(
            "source",
            metavar="SOURCE",
            nargs="*" if function is _pack else "+",
            help="a folder (its sub-folders are classes), image files, or shards (.tar; patterns)",
        )
        kind.add_argument(
            "--num-workers", type=positive, default=4, metavar="N", help="threads (default: 4)"
        )
        most = "64000000; with --max-side 1000000000"
        add_decoding_arguments(kind, *([most] if function is _pack else []))
        kind.set_defaults(kind_function=function)
        if function is _pack:
            _add_pack_arguments(kind)
        elif function is _stats:
            kind.add_argument(
                "--colours", action="store_true", help="also the mean and deviation of the colours"
            )


def run(args: argparse.Namespace) -> int:
    return args.kind_function(args)


def _add_pack_arguments(pack: argparse.ArgumentParser) -> None:
    pack.add_argument("--output", required=True, metavar="FOLDER", help="where the shards go")
    pack.add_argument(
        "--list", metavar="FILE", help="also the image files that this text file names, one a line"
    )
    pack.add_argument(
        "--pattern", default="shard-%06d.tar", help="names of the shards (default: shard-%%06d.tar)"
    )
    pack.add_argument(
        "--max-size", type=_size, default=1 << 30, metavar="SIZE", help="of a shard (default: 1G)"
    )
    pack.add_argument(
        "--max-count", type=positive, default=10_000, metavar="N", help="images (default: 10000)"
    )
    pack.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    pack.add_argument("--no-shuffle", action="store_true", help="keep the order of the source")
    pack.add_argument(
        "--max-side", type=positive, metavar="PIXELS", help="make larger images smaller, as JPEG"
    )
    pack.add_argument(
        "--quality", type=positive, default=92, help="of those JPEG files (default: 92)"
    )


def _pack(args: argparse.Namespace) -> int:
    from franca_fast.data import pack_shards

    sources = args.source + (_listed(args.list) if args.list else [])
    if not sources:
        raise InputError("SOURCE: nothing to pack; accepted: at least one SOURCE, or --list")
    with warnings_at_the_end():
        packed = pack_shards(
            sources,
            args.output,
            num_workers=args.num_workers,
            progress=_progress("shards"),
            pattern=args.pattern,
            max_size=args.max_size,
            max_count=args.max_count,
            seed=None if args.no_shuffle else args.seed,
            max_side=args.max_side,
            quality=args.quality,
            **decoding_options(args),
        )
    kept = f", {packed.kept} of them there already" if packed.kept else ""
    if packed.images:
        print(
            f"{packed.folder}: {packed.images} images, {_bytes(packed.size)} "
            f"in {len(packed.shards)} shards{kept}"
        )
    else:
        print(f"{packed.folder}: no image could be used, nothing is packed")
    print("\n".join(packed.account.lines()))
    if args.max_side is None:
        print(_HEADERS_ONLY)
    return 0 if packed.images else 1


def _check(args: argparse.Namespace) -> int:
    from franca_fast.data import check_shards
    from franca_fast.data.accounting import LABELS

    checked = check_shards(
        args.source,
        num_workers=args.num_workers,
        progress=_progress("images"),
        **decoding_options(args),
    )
    listed = [*checked.bad, *checked.left_out, *checked.remarks]
    for one in listed[:_BAD_SHOWN]:
        detail = f" ({one.detail})" if one.detail else ""
        print(f"{spell(one.location)}: {one.reason}{detail}")
    if len(listed) > _BAD_SHOWN:
        print(f"and {len(listed) - _BAD_SHOWN} more")
    print(f"{checked.shards} shards or folders, {checked.images} good images")
    print("\n".join(checked.account.lines()))
    lost = (*checked.bad, *checked.left_out, *(r for r in checked.remarks if r.reason in LABELS))
    return 1 if lost else 0


def _stats(args: argparse.Namespace) -> int:
    from franca_fast.data import shard_statistics

    with warnings_at_the_end():
        found = shard_statistics(
            args.source,
            colours=args.colours,
            num_workers=args.num_workers,
            progress=_progress("images"),
            **decoding_options(args),
        )
    print(f"{found.shards} shards or folders, {found.images} images, {_bytes(found.size)}")
    if found.images:
        print(_table_of_sizes(found))
        print("formats: " + ", ".join(f"{name} {n}" for name, n in found.formats.most_common()))
    if found.classes:
        print(_classes(found))
    if found.mean is not None and found.std is not None:
        for name, values in (("mean", found.mean), ("std", found.std)):
            print(f"{name}: " + ", ".join(f"{value:.4f}" for value in values))
    print("\n".join(found.account.lines()))
    if not args.colours:
        print(_HEADERS_ONLY)
    return 0


def _table_of_sizes(found: ShardStatistics) -> str:
    import numpy as np

    columns = {
        "width": found.widths,
        "height": found.heights,
        "width / height": found.widths / found.heights,
    }
    shares = [0, 5, 50, 95, 100]
    rows = [
        [name, *(f"{value:.4g}" for value in np.percentile(values, shares))]
        for name, values in columns.items()
    ]
    return table(["", "least", "5%", "median", "95%", "most"], rows, numeric=5)


def _classes(found: ShardStatistics) -> str:
    names = dict(enumerate(map(spell, found.class_names)))
    common = found.classes.most_common()
    shown = ", ".join(f"{names.get(label, label)} {n}" for label, n in common[:_CLASSES_SHOWN])
    unnamed = "" if names else " (numbers without names)"
    return (
        f"classes: {len(common)}{unnamed}, from {common[-1][1]} to {common[0][1]} images: {shown}"
        + (", ..." if len(common) > _CLASSES_SHOWN else "")
    )


def _progress(what: str) -> Callable[..., None] | None:
    """Shows how far it is on a terminal, in one line."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int | None = None) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done}{f' of {total}' if total else ''} {what}", end=end, file=sys.stderr)

    return show


def _listed(path: str) -> list[str]:
    """The paths in a text file, one a line, as programs of any system write it."""
    accepted = "accepted: a text file with a path on each line"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"--list: '{path}', {error.strerror}; {accepted}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if "\0" in text:
        raise InputError(f"--list: '{path}', no text of UTF-8 or UTF-16; {accepted}")
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    # Blanks at the ends belong to a name only if there is such a file.
    return [line if os.path.exists(line) else line.strip() for line in lines if line.strip()]


def _size(text: str) -> int:
    """A number of bytes such as 500M or 1G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text}; accepted: a size such as 500M or 1G")
    return max(1, int(float(match[1]) * _UNITS[match[2].upper()]))


def _bytes(size: int) -> str:
    unit = next(unit for unit in "TGMK" if size >= _UNITS[unit] or unit == "K")
    return f"{size / _UNITS[unit]:.1f} {unit}iB"
