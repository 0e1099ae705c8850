"""The main object of an image, found without training (TokenCut; figure CorLoc)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from franca_fast.data.threads import in_order
from franca_fast.data.transform import normalised
from franca_fast.data.voc_boxes import Boxes
from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.dense.attention_keys import last_keys
from franca_fast.evaluation.dense.boxed_images import BoxedImages, open_boxed_images
from franca_fast.evaluation.dense.image_grids import (
    Prepared,
    image_grids,
    padded_to_patches,
    patch_size_of,
)
from franca_fast.evaluation.dense.token_cut import box_ious, box_of, token_cut
from franca_fast.evaluation.encoders import Encoder, patch_token_grid
from franca_fast.evaluation.extras import need
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

_NAME = "object-discovery"
_FEATURES: dict[str, Callable[[Encoder, Tensor], Tensor]] = {
    "keys": last_keys,
    "tokens": patch_token_grid,
}
_MOST_PATCHES = 10_000  # the graph of so many takes 800 MB, and its eigenvectors minutes


@dataclass(frozen=True)
class ObjectDiscoverySettings:
    """Settings of the protocol.

    Attributes:
        feature: "keys" of the last block's attention, as TokenCut has it, or output "tokens", on
            which nested widths and RASA act.
        tau: patches with a larger cosine are joined.
        eps: weight of those that are not.
        img_size: the longer side to which images are scaled, pixels; None leaves them as they are.
        iou: a box is right from this intersection over union with any true box on.

    Raises:
        InputError: a value outside its range.
    """

    feature: str = "keys"
    tau: float = 0.2
    eps: float = 1e-5
    img_size: int | None = None
    iou: float = 0.5

    def __post_init__(self) -> None:
        if self.feature not in _FEATURES:
            raise InputError(
                f"feature: '{self.feature}'{did_you_mean(self.feature, _FEATURES)}; accepted: "
                f"{', '.join(_FEATURES)}"
            )
        if not -1 <= self.tau < 1:
            raise InputError(f"tau: {self.tau}; accepted: -1 to 1, without 1")
        if not 0 < self.eps < 1:
            raise InputError(f"eps: {self.eps}; accepted: between 0 and 1")
        if self.img_size is not None and self.img_size < 1:
            raise InputError(f"img_size: {self.img_size}; accepted: pixels, 1 or more, or none")
        if not 0 < self.iou <= 1:
            raise InputError(f"iou: {self.iou}; accepted: above 0, up to 1")


@dataclass(frozen=True)
class _Truth:
    """What is known of an image: (height, width) as the network sees it without padding, scale."""

    size: tuple[int, int]
    boxes: Boxes


def object_discovery(
    encoder: Encoder,
    data: Source | BoxedImages,
    settings: ObjectDiscoverySettings | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """In how many images the box of TokenCut's object is right.

    Each image keeps its size and is padded at its right and lower end, with the mean colour, to
    whole patches. `token_cut` finds the object, `box_of` its box, and the image counts as right
    where that has an intersection over union of 0.5 or more with any true box. "CorLoc" is the
    share of such images. Images without any true box are left out, and counted in `data`.

    Args:
        encoder: with keys (see `last_keys`) or patch tokens, on its device.
        data: what `open_boxed_images` takes or gives.
        settings: None takes the protocol's.
        dims: widths m, with tokens; they are cut to their first m entries before they are
            normalised.
        reading: how images are read. `num_workers` threads also solve for eigenvectors.

    Returns:
        per width "CorLoc" in per cent.

    Raises:
        InputError: data that do not fit, an encoder without the features, widths with keys, an
            image of too many patches, or scipy is not installed.
    """
    settings, reading = settings or ObjectDiscoverySettings(), reading or Reading()
    need("scipy.linalg", _NAME)
    if dims is not None and settings.feature == "keys":
        raise InputError(
            f"dims: {tuple(dims)} with feature keys; accepted: feature tokens, or no dims"
        )
    images = data
    if isinstance(images, (str, os.PathLike)):
        images = open_boxed_images(images, reading.decoding)
    patch_size = patch_size_of(encoder)
    prepare = partial(_prepared, images=images, img_size=settings.img_size, patch_size=patch_size)
    grids = image_grids(encoder, range(len(images)), prepare, reading, _FEATURES[settings.feature])
    found = partial(_found, settings=settings, patch_size=patch_size, dims=dims)
    right: dict[int, int] = {}
    counted = 0
    with tqdm(total=len(images), unit="image", disable=None if reading.progress else True) as bar:
        # The network goes on with the next images while threads cut these.
        for hits in in_order(found, grids, reading.num_workers, 2 * reading.num_workers):
            counted += bool(hits)
            for width, hit in hits.items():
                right[width] = right.get(width, 0) + hit
            bar.update()
    if not counted:
        raise InputError("data: no image with an object; accepted: one or more")
    figures = {width: {"CorLoc": 100 * n / counted} for width, n in right.items()}
    described = {"images": counted, "images_without_objects": len(images) - counted}
    details = {str(width): {"right": n} for width, n in right.items()}
    return Result(_NAME, figures, settings, {"data": described}, {}, details)


def _found(
    item: tuple[int, _Truth, Tensor],
    settings: ObjectDiscoverySettings,
    patch_size: int,
    dims: Sequence[int] | None,
) -> dict[int, bool]:
    """Width -> whether the box found is right; empty for an image without objects."""
    _, truth, grid = item
    if not len(truth.boxes):
        return {}
    features = grid.cpu().numpy()
    hits = {}
    for width in check_dims(dims, features.shape[-1]):
        cut = token_cut(features[..., :width], settings.tau, settings.eps)
        box = box_of(cut.mask, patch_size, truth.size)
        hits[width] = bool((box_ious(box, truth.boxes) >= settings.iou).any())
    return hits


def _prepared(i: int, images: BoxedImages, img_size: int | None, patch_size: int) -> Prepared:
    image, boxes = images.load(i)
    width, height = image.size
    if img_size is not None:
        scale = img_size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        boxes = boxes * np.array([width / image.width, height / image.height] * 2)
    patches = math.ceil(width / patch_size) * math.ceil(height / patch_size)
    if patches > _MOST_PATCHES:
        raise InputError(
            f"image '{spell(images.names[i])}': {patches} patches; accepted: {_MOST_PATCHES} or "
            "fewer; the setting img_size scales images"
        )
    if img_size is not None:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = padded_to_patches(normalised(image), patch_size)
    stamp = [*images.stamp(i), "padded", width, height]
    return Prepared(images.names[i], pixels, stamp, _Truth((height, width), boxes))


PROTOCOL = Protocol(
    name=_NAME,
    summary="the main object of an image without training (TokenCut's CorLoc)",
    settings=ObjectDiscoverySettings,
    roles=(
        Role(
            "data",
            "a VOC folder, VOCDetection:root=PATH:split=trainval, or images with masks",
            several=False,
            opens=open_boxed_images,
        ),
    ),
    run=on_sources_of(object_discovery, "data"),
    has_widths=lambda settings: settings.feature != "keys",
)
