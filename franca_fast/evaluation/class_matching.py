"""Classes of a training and a test set, matched by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from franca_fast.data.classes import class_key, class_order
from franca_fast.data.remote import RemoteShard
from franca_fast.data.sources import open_source
from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.features import Source
from franca_fast.spelling import spell

Roles = tuple[str, str]  # what messages call the two sets
TRAIN_AND_TEST = ("train", "test")
_SHOWN = 10


class MatchedClasses(NamedTuple):
    """Labels of two sets in one numbering.

    Attributes:
        train, test: int64, as many as the sets have images.
        class_names: of the labels 0, 1, ...; empty where they are numbers without names.
        untested: classes of the training set of which the test set has no image.
        remarks: what a user should know of it.
    """

    train: Tensor
    test: Tensor
    class_names: list[str]
    untested: list[str]
    remarks: list[str]


def match_classes(
    train: Embeddings, test: Embeddings, roles: Roles = TRAIN_AND_TEST
) -> MatchedClasses:
    """Matches the classes of two sets of labelled images by name.

    Numbers without names are matched as they are, also with classes whose name is the number.

    Args:
        train: a set in which every image has a label.
        test: another one.
        roles: what messages call the two.

    Raises:
        InputError: a class of the test set that the training set lacks; its images could only be
            counted as wrong.

    Example:
        >>> pets, dogs = ["cat", "dog"], ["dog"]
        >>> train = Embeddings(["a", "b"], torch.eye(2), torch.tensor([0, 1]), class_names=pets)
        >>> test = Embeddings(["c"], torch.ones(1, 2), torch.tensor([0]), class_names=dogs)
        >>> match_classes(train, test).test, match_classes(train, test).untested
        (tensor([1]), ['cat'])
    """
    here, there = _classes(train), _classes(test)
    check_classes(here.values(), there.values(), named=bool(train.class_names), roles=roles)
    names = class_order(train.class_names or here.values())
    numbers = {class_key(name): number for number, name in enumerate(names)}
    if not train.class_names:  # numbers without names stay as they are
        numbers = {name: number for number, name in here.items()}
    remarks = list[str]()
    if not train.class_names and not test.class_names:
        remarks.append(
            f"{' and '.join(roles)}: classes are numbers without names, matched by number"
        )
    elif not train.class_names or not test.class_names:
        unnamed = roles[1] if train.class_names else roles[0]
        remarks.append(f"{unnamed}: classes are numbers without names, matched as names")
    untested = class_order(set(here.values()) - set(there.values()))
    if untested:
        remarks.append(f"{roles[1]}: no images of {_listed(untested)}, which {roles[0]} has")
    return MatchedClasses(
        _renumbered(train, here, numbers),
        _renumbered(test, there, numbers),
        names if train.class_names else [],
        untested,
        remarks,
    )


def check_sources(train: Source, test: Source, roles: Roles = TRAIN_AND_TEST) -> None:
    """Refuses sources whose classes do not match, as far as a short look tells.

    Args:
        train: whatever `open_source` takes.
        test: the same.
        roles: what messages call the two.

    Raises:
        InputError: no images, no label for the first one, or a class that `train` lacks.
    """
    opened = {
        role: open_source(given, max_missing_fraction=1)
        for role, given in zip(roles, (train, test), strict=True)
    }
    for role, source in opened.items():
        shard = source.shards[0]
        index = None if isinstance(shard, RemoteShard) else shard.index()
        if index is not None and len(index) and index.label(0) is None:
            raise no_label(role, index.ref(0).location)
    if opened[roles[0]].all_classes_known:
        here, there = (source.class_names for source in opened.values())
        check_classes(here, there, roles=roles)


def no_label(role: str, image: str) -> InputError:
    """The error for an image without a label."""
    return InputError(
        f"{role}: images without a label, such as '{spell(image)}'; accepted: labels of class "
        "folders or of .cls members of shards"
    )


def check_classes(
    train: Iterable[str], test: Iterable[str], *, named: bool = True, roles: Roles = TRAIN_AND_TEST
) -> None:
    """Refuses a test set with classes that the training set lacks.

    Args:
        train: names of its classes; numbers where they have none.
        test: the same of the other set.
        named: whether the names of `train` are more than numbers.
        roles: what messages call the two.

    Raises:
        InputError: names the classes.
    """
    known = set(map(class_key, train))
    lacking = class_order(set(map(class_key, test)) - known)
    if lacking:
        hint = did_you_mean(lacking[0], known) if named else ""
        kind = "classes" if named else "numbers of classes, which have no names there,"
        raise InputError(
            f"{roles[1]}: images of {_listed(lacking)}{hint}, which {roles[0]} lacks; accepted: "
            f"the {kind} of {roles[0]}, {_listed(class_order(known))}"
        )


def _classes(part: Embeddings) -> dict[int, str]:
    """The name of each label that occurs; its number where it has none."""
    assert part.labels is not None
    occurring = part.labels.unique().tolist()
    names = part.class_names
    return {label: class_key(names[label]) if names else str(label) for label in occurring}


def _renumbered(part: Embeddings, names: dict[int, str], numbers: dict[str, int]) -> Tensor:
    assert part.labels is not None
    labels, places = part.labels.unique(return_inverse=True)
    return torch.tensor([numbers[names[label]] for label in labels.tolist()])[places]


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{spell(name)}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
