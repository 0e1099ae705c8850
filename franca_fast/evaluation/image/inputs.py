"""What image-level protocols refuse before they compute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.class_matching import (
    TRAIN_AND_TEST,
    MatchedClasses,
    Roles,
    match_classes,
    no_label,
)
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.encoders import Encoder, device_of

logger = logging.getLogger(__name__)


def check_features(**parts: Embeddings) -> int:
    """Refuses sets that cannot be compared.

    Args:
        parts: role -> a set.

    Returns:
        the width of their features.

    Raises:
        InputError: no images, features that are not finite, or widths that differ.

    Example:
        >>> check_features(train=Embeddings(["a"], torch.ones(1, 8)))
        8
    """
    (first, width), *_ = ((role, part.features.shape[1]) for role, part in parts.items())
    for role, part in parts.items():
        if len(part) == 0:
            raise InputError(f"{role}: no images; accepted: one or more")
        if not bool(torch.isfinite(part.features).all()):
            raise InputError(f"{role}: features that are not all finite; accepted: finite ones")
        if part.features.shape[1] != width:
            raise InputError(
                f"{role}: width {part.features.shape[1]}; accepted: that of {first}, {width}"
            )
    return width


def check_labelled(**parts: Embeddings) -> int:
    """The same for sets of which every image needs a label.

    Raises:
        InputError: see `check_features`; or an image without a label.
    """
    for role, part in parts.items():
        if len(part) and (part.labels is None or bool((part.labels < 0).any())):
            first = 0 if part.labels is None else int((part.labels < 0).nonzero()[0])
            raise no_label(role, part.names[first])
    return check_features(**parts)


def matched_classes(
    train: Embeddings, test: Embeddings, roles: Roles = TRAIN_AND_TEST
) -> MatchedClasses:
    """Matches classes by name (see `match_classes`), and warns of what a user should know of it.

    Raises:
        InputError: see `match_classes`.
    """
    matched = match_classes(train, test, roles)
    for remark in matched.remarks:
        logger.warning("%s", remark, extra={"once_in_a_run": True})
    return matched


def beside_encoder(encoder: Encoder, parts: Mapping[str, Embeddings]) -> dict[str, Embeddings]:
    """The same sets with their features on the encoder's device, where they are compared.

    Example:
        >>> part = Embeddings(["a"], torch.ones(1, 8))
        >>> beside_encoder(torch.nn.Linear(8, 8), {"train": part})["train"].features.device
        device(type='cpu')
    """
    device = device_of(encoder)
    return {role: replace(part, features=part.features.to(device)) for role, part in parts.items()}
