"""Keypoints found in other images of the same class (SPair-71k, as probe3d measures it)."""

from __future__ import annotations

import math
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from franca_fast.data.benchmark_files import file_stamp, rgb_image
from franca_fast.data.spair import KeypointPair, View, open_spair
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.image_grids import (
    Prepared,
    image_grids,
    padded_to_patches,
    patch_size_of,
)
from franca_fast.evaluation.dense.keypoint_matching import Geometry, keypoint_errors, matched_cells
from franca_fast.evaluation.dense.patch_grids import square
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.protocol import (
    Protocol,
    Reading,
    Role,
    Source,
    check_dims,
    on_sources_of,
)
from franca_fast.evaluation.result import Result
from franca_fast.spelling import spell

_NAME = "keypoints"
# What a figure's name has besides the threshold, and whether features stand at cell centres.
_CONVENTIONS = {"": False, ", cell centres": True}
Errors = dict[tuple[int, str], dict[str, Tensor]]  # width, convention -> pair -> errors


@dataclass(frozen=True)
class KeypointSettings:
    """Settings of the protocol.

    Attributes:
        img_size: images are padded to a square and scaled to this side, pixels.
        pairs_per_class: drawn at random from each class; None takes all.
        thresholds: a keypoint is found within this share of the larger side of the object's box.
        seeds: of the draws; figures are means over them.

    Raises:
        InputError: a value outside its range.
    """

    img_size: int = 800
    pairs_per_class: int | None = 200
    thresholds: tuple[float, ...] = (0.1,)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.img_size < 1:
            raise InputError(f"img_size: {self.img_size}; accepted: pixels, 1 or more")
        if self.pairs_per_class is not None and self.pairs_per_class < 1:
            raise InputError(f"pairs_per_class: {self.pairs_per_class}; accepted: 1 or more, none")
        if not self.thresholds or not all(0 < t < math.inf for t in self.thresholds):
            raise InputError(f"thresholds: {self.thresholds}; accepted: positive numbers")
        if len({f"{t:.2f}" for t in self.thresholds}) < len(self.thresholds):
            raise InputError(
                f"thresholds: {self.thresholds}; accepted: numbers that differ in two digits, by "
                "which figures are named"
            )
        if not self.seeds:
            raise InputError("seeds: none; accepted: one or more whole numbers")


def keypoints(
    encoder: Encoder,
    data: Source | Sequence[KeypointPair],
    settings: KeypointSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """How often the most similar patch of another image lies at the same keypoint.

    Images stand in the upper left corner of a white square, which is scaled (bicubic) and, where
    its side is no multiple of the patch, padded with the mean colour on all sides. A keypoint of
    the source image takes its feature by bilinear interpolation of the normalised patch features;
    the patch of the target image with the largest inner product is the answer. Recall is the share
    of a class's keypoints, over all its pairs, that are closer than `threshold` times the larger
    side of the target's box; the figure is the mean over classes.

    "recall@0.10" is measured as probe3d does (Banani et al. 2024): keypoints in whole pixels, the
    padded grid taken for the image, features sampled with align_corners=True, and the answer at
    the upper left corner of its cell. "recall@0.10, cell centres" puts features and answers at the
    centres of their patches. Images of one class are in memory at a time.

    Args:
        encoder: with patch tokens, on its device.
        data: a SPair-71k tree (see `franca_fast.data.spair.open_spair`), or pairs.
        settings: None takes the protocol's.
        dims: widths m; features are cut to their first m entries before they are normalised.
        reading: how images are read.

    Returns:
        per width the figures in per cent; in `details` the recall of each class and first seed.

    Raises:
        InputError: data that do not fit, an encoder without patch tokens, or a wrong width.
    """
    settings, reading = settings or KeypointSettings(), reading or Reading()
    pairs = open_spair(data) if isinstance(data, (str, os.PathLike)) else data
    if not pairs:
        raise InputError("data: no pairs; accepted: one or more")
    drawn = [draw_pairs(pairs, settings.pairs_per_class, seed) for seed in settings.seeds]
    used = {pair.name: pair for draw in drawn for pair in draw}
    errors = _errors(encoder, list(used.values()), settings.img_size, dims, reading)
    figures: dict[int, dict[str, float]] = {}
    spread: dict[int, dict[str, float]] = {}
    details: dict[str, Any] = {}
    for (width, convention), of_pairs in errors.items():
        for threshold in settings.thresholds:
            name = f"recall@{threshold:.2f}{convention}"
            recalls = [class_recalls(draw, of_pairs, threshold) for draw in drawn]
            means = [statistics.fmean(of_class.values()) for of_class in recalls]
            figures.setdefault(width, {})[name] = statistics.fmean(means)
            if len(means) > 1:
                error = statistics.stdev(means) / math.sqrt(len(means))
                spread.setdefault(width, {})[name] = error
            details.setdefault(str(width), {})[name] = recalls[0]
    return Result(_NAME, figures, settings, {"data": _described(used)}, spread, details)


def draw_pairs(
    pairs: Sequence[KeypointPair], per_class: int | None, seed: int
) -> list[KeypointPair]:
    """Some pairs of each class, which depend on their names and the seed alone.

    Args:
        pairs: in any order.
        per_class: how many; all of a class that has fewer, and None for all.
        seed: each class draws with its own numbers, so that other classes change nothing.

    Returns:
        the pairs, sorted by class and name.
    """
    classes: dict[str, list[KeypointPair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.name):
        classes.setdefault(pair.class_name, []).append(pair)
    drawn = list[KeypointPair]()
    for name in sorted(classes):
        kept = classes[name]
        if per_class is not None and per_class < len(kept):
            chosen = random.Random(f"{seed} {name}").sample(range(len(kept)), per_class)
            kept = [kept[i] for i in sorted(chosen)]
        drawn += kept
    return drawn


def class_recalls(
    pairs: Sequence[KeypointPair], errors: Mapping[str, Tensor], threshold: float
) -> dict[str, float]:
    """The share of keypoints with an error below a threshold, per class.

    Args:
        pairs: those that count.
        errors: name of a pair -> errors of its keypoints.
        threshold: exclusive.

    Returns:
        class -> per cent, over the keypoints of all its pairs.
    """
    of_class: dict[str, list[Tensor]] = {}
    for pair in pairs:
        of_class.setdefault(pair.class_name, []).append(errors[pair.name])
    return {
        name: 100 * float((torch.cat(parts) < threshold).double().mean())
        for name, parts in of_class.items()
    }


def _errors(
    encoder: Encoder,
    pairs: Sequence[KeypointPair],
    img_size: int,
    dims: Sequence[int] | None,
    reading: Reading,
) -> Errors:
    """Errors of all keypoints, at each width and by each convention."""
    patch_size = patch_size_of(encoder)
    views = [
        (name, view)
        for name in sorted({pair.class_name for pair in pairs})
        for view in _views([pair for pair in pairs if pair.class_name == name])
    ]
    prepare = partial(_prepared, img_size=img_size, patch_size=patch_size, reading=reading)
    grids = image_grids(encoder, views, prepare, reading)
    errors: Errors = {}
    with tqdm(total=len(views), unit="image", disable=None if reading.progress else True) as bar:
        for class_name, of_class in _by_class(grids, bar):
            for pair in pairs:
                if pair.class_name != class_name:
                    continue
                source, target = (of_class[view.file] for view in (pair.source, pair.target))
                for width in check_dims(dims, source.shape[-1]):
                    for name, centred in _CONVENTIONS.items():
                        geometry = Geometry(img_size, len(source), patch_size, centred)
                        found = pair_errors(
                            source[..., :width], target[..., :width], pair, geometry
                        )
                        errors.setdefault((width, name), {})[pair.name] = found
    return errors


def pair_errors(source: Tensor, target: Tensor, pair: KeypointPair, geometry: Geometry) -> Tensor:
    """Errors of a pair's keypoints, in units of the larger side of the target's box.

    Args:
        source: [cells, cells, d], features of the first image.
        target: the same of the second.
        pair: with the keypoints.
        geometry: the convention.

    Returns:
        float64 [n].
    """
    places = [_in_widths(view, geometry) for view in (pair.source, pair.target)]
    found = geometry.positions(matched_cells(source, target, places[0], geometry))
    left, top, right, bottom = pair.target.box
    scale = max(right - left, bottom - top) / max(pair.target.size)
    return keypoint_errors(found, places[1], scale)


def _in_widths(view: View, geometry: Geometry) -> Tensor:
    """Keypoints in widths of the square image, float64 [n, 2]."""
    keypoints, side = torch.from_numpy(view.keypoints), max(view.size)
    if geometry.centred:
        return keypoints / side
    # In whole pixels, before and after scaling, as probe3d has them.
    return (keypoints.trunc() * geometry.img_size / side).trunc() / geometry.img_size


def _views(pairs: Sequence[KeypointPair]) -> list[View]:
    """The images of some pairs, each once, in the order of their names."""
    found = {view.file: view for pair in pairs for view in (pair.source, pair.target)}
    return [found[file] for file in sorted(found)]


def _by_class(
    grids: Iterator[tuple[tuple[str, View], Any, Tensor]], bar: Any
) -> Iterator[tuple[str, dict[Path, Tensor]]]:
    """Features of the images of one class after the other."""
    current, held = "", dict[Path, Tensor]()
    for (name, view), _, grid in grids:
        if held and name != current:
            yield current, held
            held = {}
        current, held[view.file] = name, grid
        bar.update()
    yield current, held


def _prepared(item: tuple[str, View], img_size: int, patch_size: int, reading: Reading) -> Prepared:
    view = item[1]
    image = rgb_image(view.file, reading.decoding)
    if image.size != view.size:
        raise InputError(
            f"image '{spell(str(view.file))}': {image.width} x {image.height} pixels; accepted: "
            f"the size in its annotation, {view.size[0]} x {view.size[1]}"
        )
    canvas = Image.new("RGB", (max(image.size),) * 2, "white")
    canvas.paste(image)
    pixels = padded_to_patches(square(canvas, img_size), patch_size, centred=True)
    return Prepared(str(view.file), pixels, [*file_stamp(view.file), "square", img_size])


def _described(pairs: Mapping[str, KeypointPair]) -> dict[str, Any]:
    classes = sorted({pair.class_name for pair in pairs.values()})
    return {
        "images": len({view.file for p in pairs.values() for view in (p.source, p.target)}),
        "pairs": len(pairs),
        "keypoints": sum(len(pair.target.keypoints) for pair in pairs.values()),
        "classes": len(classes),
        "class_names": classes,
    }


PROTOCOL = Protocol(
    name=_NAME,
    summary="keypoints of an image found in others of its class (SPair-71k)",
    settings=KeypointSettings,
    roles=(
        Role(
            "data",
            "a SPair-71k folder, or SPair-71k:root=PATH:split=test",
            several=False,
            opens=open_spair,
        ),
    ),
    run=on_sources_of(keypoints, "data"),
)
