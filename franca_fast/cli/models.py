"""List the released models and the architectures.

A released model needs its file: franca-fast embed franca_vitb14 --weights FILE ...
"""

from __future__ import annotations

import argparse

from franca_fast.cli.common import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no options."""


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    from franca_fast.hub import list_models
    from franca_fast.hub.released import CODE_LICENCE, WEIGHTS_LICENCE
    from franca_fast.models.architectures import ARCHITECTURES

    models = list_models()
    released = [
        [m.name, m.weights, m.architecture, m.img_size, "yes" if m.rasa else "no", m.address]
        for m in models
        if m.weights is not None
    ]
    print(f"Released models (code {CODE_LICENCE}; weights {WEIGHTS_LICENCE})")
    print(table(["name", "weights", "architecture", "image size", "RASA", "file"], released))
    dimensions = ("embed_dim", "depth", "num_heads")
    architectures = [
        [m.name, *(ARCHITECTURES[m.name][key] for key in dimensions)]
        for m in models
        if m.weights is None
    ]
    print("\nArchitectures")
    print(table(["name", "width", "depth", "heads"], architectures, numeric=3))
    return 0
