"""What is evaluated at intervals of a run: as configured, and the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.evaluation import embed, knn
from franca_fast.evaluation.class_matching import check_sources
from franca_fast.evaluation.evaluate import find_protocol
from franca_fast.evaluation.protocol import Reading, check_data
from franca_fast.evaluation.requests import parse_request
from franca_fast.models import VisionTransformer

Evaluate = Callable[[int, VisionTransformer], Mapping[str, float]]


def configured_evaluation(config: Config, own: Evaluate | None = None) -> Evaluate | None:
    """All evaluations of a run as one; None when there are none.

    Args:
        config: `evaluation.knn_train` and `knn_test` give "knn/<dimension>/<k>", each of
            `evaluation.protocols` gives "<name>/<dimension>/<figure>", at every nested dimension.
        own: the caller's, after them.

    Raises:
        InputError: a line that cannot be read, two of one name, images or labels that are missing,
            or classes that do not match.
    """
    parts = list[Evaluate]()
    if config.evaluation.knn_train:
        parts.append(_knn(config))
    if config.evaluation.protocols:
        parts.append(_protocols(config, config.evaluation.protocols))
    if own is not None:
        parts.append(own)
    if not parts:
        return None
    return lambda step, backbone: {
        name: value for part in parts for name, value in part(step, backbone).items()
    }


def _decoding(config: Config) -> dict[str, Any]:
    return {name: getattr(config.train, name) for name in ("max_image_pixels", "levels")}


def _knn(config: Config) -> Evaluate:
    sources = (config.evaluation.knn_train, config.evaluation.knn_test)
    decoding = _decoding(config)
    check_sources(*sources)

    def evaluate(step: int, backbone: VisionTransformer) -> dict[str, float]:
        train, test = (embed(backbone, source, **decoding) for source in sources)
        return {
            f"knn/{m}/{k}": accuracy
            for m, at_k in knn(train, test, nesting_dims=config.nesting_dims).items()
            for k, accuracy in at_k.items()
        }

    return evaluate


def _protocols(config: Config, lines: list[str]) -> Evaluate:
    requests = [parse_request(line) for line in lines]
    names = [request.name for request in requests]
    names += ["knn"] if config.evaluation.knn_train else []
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"evaluation.protocols: two of the name '{twice[0]}'; accepted: names that differ, by "
            "name=NAME in a line"
        )
    for request in requests:
        check_data(find_protocol(request.protocol), request.sources)
    reading = Reading(decoding=_decoding(config))

    def evaluate(step: int, backbone: VisionTransformer) -> dict[str, float]:
        return {
            name: value
            for request in requests
            for name, value in request.figures(backbone, config.nesting_dims, reading).items()
        }

    return evaluate
