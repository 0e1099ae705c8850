"""A protocol by its name: which there are, and how one is run."""

from __future__ import annotations

import importlib
import os
import pkgutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation import dense, image
from franca_fast.evaluation.encoders import Encoder, as_encoder, precision_of
from franca_fast.evaluation.feature_cache import weights_checksum
from franca_fast.evaluation.paper import paper_figures
from franca_fast.evaluation.protocol import (
    Protocol,
    Reading,
    Source,
    Sources,
    check_data,
    check_dims,
    check_roles,
    parse_settings,
)
from franca_fast.evaluation.result import Result
from franca_fast.spelling import spell


def protocols() -> dict[str, Protocol]:
    """All protocols by name: every file of `image/` and `dense/` that names its `PROTOCOL`.

    Example:
        >>> protocols()["knn"].roles[0].name
        'train'
    """
    found = list[Protocol]()
    for package in (image, dense):
        names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
        files = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
        found += [file.PROTOCOL for file in files if hasattr(file, "PROTOCOL")]
    return {protocol.name: protocol for protocol in found}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        InputError: with the nearest name.
    """
    known = protocols()
    if name not in known:
        raise InputError(
            f"protocol: '{name}'{did_you_mean(name, known)}; accepted: {', '.join(known)}"
        )
    return known[name]


def evaluate(
    protocol: str,
    model: Encoder | str | os.PathLike[str],
    sources: Mapping[str, Source | Sources],
    settings: Mapping[str, Any] | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
    name: str | None = None,
) -> Result:
    """Runs a protocol by its name.

    Args:
        protocol: "knn", "in-context", ...; see `protocols`.
        model: an encoder, on its device, or what `load_model` takes.
        sources: for each role of the protocol, one source or several.
        settings: those that differ from the protocol's, as values or as text.
        dims: widths; features are cut to their first entries. None takes the full width only.
        reading: how images are read.
        name: what the result calls the model; None takes what was given for it.

    Raises:
        InputError: an unknown protocol, role or setting, data that do not fit, or a library that is
            missing.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
        >>> data = {"train": "FashionMNIST:split=TEST", "test": "FashionMNIST:split=TEST"}
        >>> evaluate("knn", model, data, {"ks": "1"}).figures[128]["k=1"]
        100.0
    """
    chosen = find_protocol(protocol)
    parsed = parse_settings(chosen.settings, settings or {})
    given = check_roles(chosen, sources)
    check_data(chosen, given)
    reading = reading or Reading()
    encoder = as_encoder(model)
    width = getattr(encoder, "embed_dim", None)
    if dims is not None and isinstance(width, int) and hasattr(encoder, "forward_features"):
        check_dims(dims, width)  # before any image is read
    began = time.perf_counter()
    result = chosen.run(encoder, given, parsed, dims, reading)
    result.seconds = time.perf_counter() - began
    if name is None:
        name = type(model).__name__
        if isinstance(model, (str, os.PathLike)):
            name = os.fspath(model)
    result.encoder = _described(encoder, name, reading.precision)
    result.paper = paper_figures(name, protocol, given)
    for role, facts in result.data.items():
        if role in given:
            facts["source"] = [spell(os.fspath(one)) for one in given[role]]
    return result


def _described(encoder: Encoder, name: str, precision: str) -> dict[str, Any]:
    """What was evaluated."""
    facts: dict[str, Any] = {"model": name, "precision": precision_of(encoder, precision)}
    if isinstance(encoder, nn.Module):
        facts["parameters"] = sum(parameter.numel() for parameter in encoder.parameters())
        facts["weights_sha256"] = weights_checksum(encoder)
    return facts
