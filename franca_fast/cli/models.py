"""List the released models and the architectures; download weights.

A released model is downloaded when its name is first used, or ahead of that:

  franca-fast models --download franca_vitb14
  franca-fast models --download franca_vitb14:IN21K_224

FRANCA_FAST_CACHE names the folder that keeps the files, FRANCA_FAST_MIRROR another address that
has them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from franca_fast.cli.common import table

if TYPE_CHECKING:
    from franca_fast.hub import ModelInfo

GROUP = "weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--download", metavar="NAME[:WEIGHTS]", help="download these weights and print their path"
    )
    parser.add_argument(
        "--rasa", action="store_true", help="with --download: the RASA file instead of the weights"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare cached files with their recorded hashes"
    )


def run(args: argparse.Namespace) -> int:
    if args.rasa and not args.download:
        args.parser.error("--rasa needs --download")
    if args.download:
        return _download(args.download, args.rasa)
    return _verify() if args.verify else _list()


def _download(wanted: str, rasa: bool) -> int:
    from franca_fast.hub import download_model

    name, _, weights = wanted.partition(":")
    print(download_model(name, weights or None, rasa=rasa))
    return 0


def _verify() -> int:
    from franca_fast.errors import InputError
    from franca_fast.hub import cache_folder
    from franca_fast.hub.store import verify_cache

    words = {True: "unchanged", False: "changed", None: "no hash recorded"}
    verdicts = verify_cache()
    if not verdicts:
        print(f"{cache_folder()}: empty")
        return 0
    print(table(["file", "verdict"], [[file, words[verdict]] for file, verdict in verdicts]))
    changed = [str(file) for file, verdict in verdicts if verdict is False]
    if changed:
        raise InputError(f"changed since the download, delete: {', '.join(changed)}")
    return 0


def _list() -> int:
    from franca_fast.hub import cache_folder, list_models
    from franca_fast.models.architectures import ARCHITECTURES

    models = list_models()
    released = [
        [
            *(m.name, m.weights, m.architecture, m.img_size, m.num_register_tokens),
            *("yes" if m.rasa else "no", m.licence, _cached(m), _address(m)),
        ]
        for m in models
        if m.weights is not None
    ]
    header = ["name", "weights", "architecture", "image size", "registers", "RASA"]
    print("Released models")
    print(table([*header, "licence of the weights", "cached", "address"], released))
    print(f"\nThe first line of a name is what the name alone stands for. Cache: {cache_folder()}")
    dimensions = ("embed_dim", "depth", "num_heads")
    architectures = [
        [m.name, *(ARCHITECTURES[m.name][key] for key in dimensions), _megabytes(m.name)]
        for m in models
        if m.weights is None
    ]
    print("\nArchitectures")
    print(table(["name", "width", "depth", "heads", "float32 MB"], architectures, numeric=4))
    return 0


def _address(model: ModelInfo) -> str:
    return f"{model.address}{' (withdrawn upstream)' if model.withdrawn else ''}"


def _cached(model: ModelInfo) -> str:
    from franca_fast.hub.store import cached_path

    file = cached_path(model)
    return f"{file.stat().st_size / 1e6:.0f} MB" if file.is_file() else "no"


def _megabytes(architecture: str) -> int:
    """Size of the weights of a backbone."""
    import torch

    from franca_fast.models import build_backbone

    with torch.device("meta"):
        backbone = build_backbone(architecture)
    return round(4 * sum(p.numel() for p in backbone.parameters()) / 1e6)
