"""Patch features of images with masks, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.data.threads import in_order
from franca_fast.data.transform import normalised
from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import (
    Encoder,
    device_of,
    inference,
    patch_token_grid,
)
from franca_fast.evaluation.feature_cache import FeatureCache, encoder_facts
from franca_fast.evaluation.protocol import Reading
from franca_fast.hub import check_img_size


@dataclass
class PatchBatch:
    """Patch features of some images.

    Attributes:
        names: of the B images.
        grids: float32 [B, h, w, d] on the encoder's device.
        masks: int64 [H, W] each, of the images' own sizes, on the CPU.
    """

    names: list[str]
    grids: Tensor
    masks: list[Tensor]


def patch_grids(
    encoder: Encoder, data: SegmentedImages, size: int, reading: Reading
) -> Iterator[PatchBatch]:
    """Patch features of all images of a set, in its order.

    Images are squashed to a square (bicubic) and normalised with ImageNet's mean and standard
    deviation; masks stay as they are. With `reading.features_cache` the features are kept there:
    images whose features are kept are not encoded again.

    Args:
        encoder: with patch tokens (see `patch_token_grid`), on its device.
        data: images with masks.
        size: side of the square, pixels.
        reading: batch size, threads, precision, cache.

    Raises:
        InputError: no patch tokens, a size that is no multiple of the patch, features that are not
            finite, or an image that cannot be read.

    Example:
        >>> from franca_fast.data import open_segmentation
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=14, img_size=112)
        >>> scenes = open_segmentation("FashionScenes:split=TEST")
        >>> next(patch_grids(model, scenes, 112, Reading(batch_size=2))).grids.shape
        torch.Size([2, 8, 8, 128])
    """
    check_patch_size(encoder, size)
    with tqdm(total=len(data), unit="image", disable=None if reading.progress else True) as bar:
        for batch in _batches(encoder, data, size, reading):
            yield batch
            bar.update(len(batch.names))


def check_patch_size(encoder: Encoder, size: int) -> int:
    """Refuses an encoder without patch tokens, and a size that its patches do not fill.

    Returns:
        the side of a patch in pixels.

    Raises:
        InputError: says which sizes are accepted.
    """
    patch_size: int | None = getattr(encoder, "patch_size", None)
    if patch_size is None or not hasattr(encoder, "forward_features"):
        raise InputError(
            "encoder: no patch tokens; accepted: a module with forward_features and patch_size"
        )
    check_img_size(size, patch_size)
    return patch_size


def square(image: Image.Image, size: int) -> Tensor:
    """An image squashed to a square and normalised, float32 [3, size, size]."""
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return normalised(resized)


def _batches(
    encoder: Encoder, data: SegmentedImages, size: int, reading: Reading
) -> Iterator[PatchBatch]:
    if reading.features_cache is None:
        yield from _computed(encoder, data, size, reading, 0)
        return
    cache, facts = FeatureCache(reading.features_cache), _facts(encoder, data, size, reading)
    done = cache.done(facts)
    if done:
        kept = cache.kept(facts, done)
        device = device_of(encoder)
        for first in range(0, done, reading.batch_size):
            rows = range(first, min(first + reading.batch_size, done))
            masks = [torch.from_numpy(data.load(i)[1]) for i in rows]
            grids = kept[rows.start : rows.stop].clone().to(device)
            yield PatchBatch([data.names[i] for i in rows], grids, masks)
    if done == len(data):
        return
    shown = list[PatchBatch]()  # the batch whose features are being kept

    def features() -> Iterator[Tensor]:
        for batch in _computed(encoder, data, size, reading, done):
            shown.append(batch)
            yield batch.grids

    for _ in cache.keep(facts, done, features()):
        yield shown.pop()


def _computed(
    encoder: Encoder, data: SegmentedImages, size: int, reading: Reading, first: int
) -> Iterator[PatchBatch]:
    """Batches from an image on."""

    def work(i: int) -> tuple[str, Tensor, Tensor]:
        image, mask = data.load(i)
        return data.names[i], square(image, size), torch.from_numpy(mask)

    ahead = reading.batch_size + reading.num_workers
    prepared = in_order(work, range(first, len(data)), reading.num_workers, ahead)
    for start in range(first, len(data), reading.batch_size):
        rows = range(start, min(start + reading.batch_size, len(data)))
        names, images, masks = zip(*(next(prepared) for _ in rows), strict=True)
        # Not around the loop: between batches gradients are the caller's own affair.
        with inference(encoder, reading.precision) as device:
            grids = patch_token_grid(encoder, torch.stack(images).to(device))
        _check_finite(grids, names)
        yield PatchBatch(list(names), grids, list(masks))


def _check_finite(grids: Tensor, names: tuple[str, ...]) -> None:
    finite = torch.isfinite(grids).flatten(1).all(1)
    if not finite.all():
        bad = names[int(finite.logical_not().nonzero()[0])]
        raise InputError(
            f"features: not finite for '{bad}'; accepted: a model whose features are finite"
        )


def patch_width(encoder: Encoder, size: int) -> int:
    """The width of the patch features."""
    with inference(encoder) as device:
        return patch_token_grid(encoder, torch.zeros(1, 3, size, size, device=device)).shape[-1]


def _facts(encoder: Encoder, data: SegmentedImages, size: int, reading: Reading) -> dict[str, Any]:
    return {
        "kind": "patch grids",
        **encoder_facts(encoder, reading.precision),
        "data": data.fingerprint(),
        "size": size,
    }
