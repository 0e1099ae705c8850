"""Patch features of images that keep their own sizes, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from franca_fast.data.threads import in_order
from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import (
    Encoder,
    device_of,
    inference,
    patch_token_grid,
)
from franca_fast.evaluation.feature_cache import FeatureCache, encoder_facts
from franca_fast.evaluation.protocol import Reading
from franca_fast.spelling import spell

Item = TypeVar("Item")
About = TypeVar("About")

_PIXELS_AT_ONCE = 64 * 224 * 224  # large images go through the network in smaller batches
_AHEAD = 16  # images that are prepared while the network is at work


class Prepared(NamedTuple):
    """An image as the network sees it.

    Attributes:
        name: for errors.
        pixels: float32 [3, H, W], normalised, sides that are multiples of the patch.
        stamp: plain values that tell these pixels from all others, for the cache of features.
        about: whatever the caller wants back.
    """

    name: str
    pixels: Tensor
    stamp: Sequence[Any]
    about: Any = None


def image_grids(
    encoder: Encoder,
    items: Sequence[Item],
    prepare: Callable[[Item], Prepared],
    reading: Reading,
    extract: Callable[[Encoder, Tensor], Tensor] = patch_token_grid,
) -> Iterator[tuple[Item, Any, Tensor]]:
    """Features of images of any sizes; neighbours of one size go through the network together.

    At most `reading.batch_size` images are taken at once, and fewer where these would be more
    pixels than 64 images of 224 x 224. With `reading.features_cache` the features of each image are
    kept there, in a file of its own.

    Args:
        encoder: on its device.
        items: what the images are made from.
        prepare: makes one; called in threads.
        reading: batch size, threads, precision, cache.
        extract: from the encoder and images [B, 3, H, W] to features [B, h, w, d].

    Yields:
        the item, `about` of its image, and float32 [h, w, d] on the encoder's device; in order.

    Raises:
        InputError: features that are not finite; or what `prepare` and `extract` raise.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=14, img_size=112)
        >>> def prepare(side: int) -> Prepared:
        ...     return Prepared(str(side), torch.zeros(3, 28, side), [side])
        >>> [grid.shape for _, _, grid in image_grids(model, [28, 42], prepare, Reading())]
        [torch.Size([2, 2, 128]), torch.Size([2, 3, 128])]
    """
    cache = _Cache(encoder, reading, extract)
    waiting: list[tuple[Item, Prepared]] = []

    def features() -> Iterator[tuple[Item, Any, Tensor]]:
        grids = [cache.kept(one) for _, one in waiting]
        new = [one for (_, one), grid in zip(waiting, grids, strict=True) if grid is None]
        computed = iter(_computed(encoder, new, reading, extract) if new else ())
        for (item, one), grid in zip(waiting, grids, strict=True):
            if grid is None:
                grid = next(computed)
                cache.keep(one, grid)
            yield item, one.about, grid
        waiting.clear()

    ahead = reading.num_workers + min(reading.batch_size, _AHEAD)
    prepared = in_order(prepare, items, reading.num_workers, ahead)
    for item, one in zip(items, prepared, strict=True):
        full = len(waiting) >= _at_once(reading, one.pixels[0].numel())
        if waiting and (full or waiting[0][1].pixels.shape != one.pixels.shape):
            yield from features()
        waiting.append((item, one))
    yield from features()


def padded_to_patches(pixels: Tensor, patch_size: int, *, centred: bool = False) -> Tensor:
    """An image with zeros around it, so that its sides are multiples of the patch.

    Args:
        pixels: [3, H, W], normalised; zero is then the mean colour.
        patch_size: pixels.
        centred: half of the zeros on each side, one more at the end; else all at the end.

    Example:
        >>> padded_to_patches(torch.ones(3, 14, 15), 14).shape
        torch.Size([3, 14, 28])
    """
    height, width = (-side % patch_size for side in pixels.shape[1:])
    top, left = (height // 2, width // 2) if centred else (0, 0)
    return F.pad(pixels, (left, width - left, top, height - top))


def patch_size_of(encoder: Encoder) -> int:
    """The side of the encoder's patches in pixels.

    Raises:
        InputError: it does not tell.
    """
    patch_size: int | None = getattr(encoder, "patch_size", None)
    if patch_size is None:
        raise InputError("encoder: no patch_size; accepted: a module with patch_size")
    return patch_size


def _at_once(reading: Reading, pixels: int) -> int:
    return max(1, min(reading.batch_size, _PIXELS_AT_ONCE // max(1, pixels)))


def _computed(
    encoder: Encoder,
    images: list[Prepared],
    reading: Reading,
    extract: Callable[[Encoder, Tensor], Tensor],
) -> Tensor:
    with inference(encoder, reading.precision) as device:
        grids = extract(encoder, torch.stack([one.pixels for one in images]).to(device)).float()
    finite = torch.isfinite(grids).flatten(1).all(1)
    if not finite.all():
        bad = images[int(finite.logical_not().nonzero()[0])].name
        raise InputError(
            f"features: not finite for '{spell(bad)}'; accepted: a model whose features are finite"
        )
    return grids


class _Cache:
    """Features of single images on the disk, or nothing where no folder is given."""

    def __init__(
        self, encoder: Encoder, reading: Reading, extract: Callable[[Encoder, Tensor], Tensor]
    ) -> None:
        self._cache = None
        if reading.features_cache is not None:
            self._cache = FeatureCache(reading.features_cache)
            self._device = device_of(encoder)
            self._facts = {
                "kind": f"grid of {extract.__name__}",
                **encoder_facts(encoder, reading.precision),
            }

    def kept(self, one: Prepared) -> Tensor | None:
        if self._cache is None or not self._cache.done(self._facts_of(one)):
            return None
        return self._cache.kept(self._facts_of(one), 1)[0].to(self._device)

    def keep(self, one: Prepared, grid: Tensor) -> None:
        if self._cache is not None:
            list(self._cache.keep(self._facts_of(one), 0, [grid[None]]))

    def _facts_of(self, one: Prepared) -> dict[str, Any]:
        return {**self._facts, "image": list(one.stamp), "pixels": list(one.pixels.shape)}
