"""Pairs of images with keypoints, laid out as SPair-71k is (Min et al. 2019)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from franca_fast.data.benchmark_files import (
    benchmark_source,
    benchmark_tree,
    check_files,
    files_by_stem,
    read_list,
)
from franca_fast.errors import InputError
from franca_fast.spelling import spell

_NAME = "SPair-71k"
_ACCEPTED = "the annotation of a pair"


@dataclass(frozen=True)
class View:
    """One image of a pair.

    Attributes:
        file: the image.
        size: (width, height) as annotated, pixels.
        keypoints: float64 [n, 2], x and y in pixels.
        box: left, top, right, bottom of the object, pixels.
    """

    file: Path
    size: tuple[int, int]
    keypoints: npt.NDArray[np.float64]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class KeypointPair:
    """Two images of a class, and the keypoints that both show, in the same order.

    Attributes:
        name: of the pair's file, without its suffix.
        class_name: what both show.
        source, target: the images.
    """

    name: str
    class_name: str
    source: View
    target: View


def open_spair(source: str | os.PathLike[str]) -> list[KeypointPair]:
    """Pairs of a SPair-71k tree.

    It has `JPEGImages/<class>/*.jpg` and `PairAnnotation/<split>/*.json`. Where it has
    `Layout/large/<split>.txt` too, there must be as many pairs as that lists.

    Args:
        source: the tree, or the folder above it, in which it is called SPair-71k; or
            `SPair-71k:root=PATH:split=test`, or another split (trn, val).

    Returns:
        all pairs of the split, sorted by name.

    Raises:
        InputError: another tree, pairs or images that are missing, or an annotation that cannot
            be used.
    """
    folder, options = benchmark_source(source, _NAME, {"split": "test"})
    annotations = f"PairAnnotation/{options['split']}"
    root = benchmark_tree(folder, _NAME, ["JPEGImages", annotations], [_NAME])
    files = files_by_stem(root / annotations, (".json",))
    listed = root / "Layout" / "large" / f"{options['split']}.txt"
    expected = len(set(read_list(listed))) if listed.is_file() else None
    if not files or len(files) != (expected or len(files)):
        accepted = f"the {expected} of {listed.name} in Layout/large" if expected else "one or more"
        raise InputError(f"{_NAME}: {len(files)} pairs in {annotations}; accepted: {accepted}")
    pairs = [_pair(root / "JPEGImages", file) for file in files.values()]
    check_files(_NAME, sorted({view.file for p in pairs for view in (p.source, p.target)}))
    return pairs


def _pair(images: Path, file: Path) -> KeypointPair:
    where = f"{_NAME} '{spell(os.fspath(file))}'"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        class_name = str(facts["category"])
        source, target = (_view(images / class_name, facts, side) for side in ("src", "trg"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"without {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where}: {why}; accepted: {_ACCEPTED}") from None
    n, m = len(source.keypoints), len(target.keypoints)
    if n != m or not n:
        raise InputError(f"{where}: {n} and {m} keypoints; accepted: those that both images show")
    left, top, right, bottom = target.box
    if not (right > left and bottom > top and min(*source.size, *target.size) > 0):
        raise InputError(
            f"{where}: the box {target.box} in {target.size[0]} x {target.size[1]} pixels; "
            "accepted: left, top, right, bottom of a box that is not empty"
        )
    return KeypointPair(file.stem, class_name, source, target)


def _view(folder: Path, facts: dict[str, Any], side: str) -> View:
    width, height, *_ = facts[f"{side}_imsize"]
    left, top, right, bottom = map(float, facts[f"{side}_bndbox"])
    keypoints = np.array(facts[f"{side}_kps"], dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(keypoints).all():
        raise ValueError("keypoints that are no numbers")
    size = (int(width), int(height))
    return View(folder / str(facts[f"{side}_imname"]), size, keypoints, (left, top, right, bottom))
