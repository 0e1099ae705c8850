"""A training set and test sets with their classes in one numbering, before any image is decoded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from franca_fast.data.decoding import MAX_IMAGE_PIXELS, DecodeSettings
from franca_fast.data.numbered_images import NumberedImages
from franca_fast.errors import InputError
from franca_fast.evaluation.class_matching import match_classes, no_label
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.protocol import Source, Sources
from franca_fast.spelling import spell


@dataclass(frozen=True)
class LabelledSet:
    """One set of images.

    Attributes:
        images: the images.
        labels: int64 [n], 0 to C - 1: the classes that the training set has images of.
        classes: int64, the labels that occur here, in their order.
        remarks: what a user should know of how classes were matched.
    """

    images: NumberedImages
    labels: Tensor
    classes: Tensor
    remarks: list[str]

    def described(self) -> dict[str, Any]:
        """What a result says of it, once images have been read."""
        return {
            "images": len(self.images) - sum(self.images.account.skipped.values()),
            "classes": len(self.classes),
            "remarks": self.remarks,
            "account": self.images.account.as_dict(),
        }


def open_sets(
    sources: Mapping[str, Sources], decoding: Mapping[str, Any], class_list: str | None = None
) -> tuple[LabelledSet, dict[str, LabelledSet]]:
    """Opens labelled images of all roles and matches their classes by name.

    Args:
        sources: what there is for "train", "test", maybe "validation", and "further", of which each
            source is a set of its own, with the name of its file or folder, or its path where
            another set has that name.
        decoding: `max_image_pixels` and `levels`, as `Reading` has them.
        class_list: a file with the name of a class on each line. In test sets whose classes are
            numbers, such as the folders 0 to 999 of ImageNet-V2, they are places in this list.

    Returns:
        the training set; and the others by name, "validation" and "test" first.

    Raises:
        InputError: images without labels, or a class that the training set lacks.

    Example:
        >>> sources = {"train": ["FashionMNIST:split=TRAIN"], "test": ["FashionMNIST:split=TEST"]}
        >>> train, others = open_sets(sources, {})
        >>> len(train.labels), len(train.classes), list(others)
        (6000, 10, ['test'])
    """
    settings = DecodeSettings(
        decoding.get("max_image_pixels", MAX_IMAGE_PIXELS), decoding.get("levels", "full")
    )
    names = [] if class_list is None else _read_list(class_list)
    train = NumberedImages(list(sources["train"]), settings)
    known = _labelled("train", train)
    classes, labels = known.labels.unique(return_inverse=True)  # type: ignore[union-attr]
    others = dict[str, LabelledSet]()
    for name, source in _named(sources).items():
        images = NumberedImages(source, settings)
        matched = match_classes(known, _renamed(_labelled(name, images), names), ("train", name))
        classes, labels = matched.train.unique(return_inverse=True)
        others[name] = _set(images, torch.searchsorted(classes, matched.test), matched.remarks)
    return _set(train, labels, []), others


def _named(sources: Mapping[str, Sources]) -> dict[str, Source | list[Source]]:
    given: dict[str, Source | list[Source]] = {
        role: list(sources[role]) for role in ("validation", "test") if role in sources
    }
    for one in sources.get("further", ()):
        name = os.path.basename(os.path.normpath(os.fspath(one)))
        if name in ("train", "validation", "test") or name in given:
            name = os.fspath(one)
        if name in given:
            raise InputError(f"further: '{spell(name)}' twice; accepted: each set once")
        given[spell(name)] = one
    return given


def _set(images: NumberedImages, labels: Tensor, remarks: Sequence[str]) -> LabelledSet:
    return LabelledSet(images, labels, labels.unique(), list(remarks))


def _labelled(role: str, images: NumberedImages) -> Embeddings:
    """The labels and classes of a set, with features of no width."""
    labels = torch.from_numpy(images.labels)
    if bool((labels < 0).any()):
        raise no_label(role, images.ref(int((labels < 0).nonzero()[0])).location)
    empty = torch.empty(len(images), 0)
    return Embeddings([""] * len(images), empty, labels, class_names=images.class_names)


def _renamed(part: Embeddings, names: Sequence[str]) -> Embeddings:
    """The set with the names of a list where its classes are places in it."""
    assert part.labels is not None
    shown = part.class_names or [str(i) for i in range(1 + int(part.labels.max()))]
    if not names or not all(name.isascii() and name.isdigit() for name in shown):
        return part
    places = torch.tensor([int(name) for name in shown])[part.labels]
    if int(places.max()) >= len(names):
        raise InputError(
            f"class_list: {len(names)} names for class {int(places.max())}; accepted: a name for "
            "each"
        )
    return Embeddings(part.names, part.features, places, class_names=list(names))


def _read_list(file: str) -> list[str]:
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"class_list: '{spell(file)}', {error}; accepted: a file with a name a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]
