"""Images and masks for training a segmentation head: resized, cropped and flipped together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.data.transform import normalised

NOT_COUNTED = -1  # the target of pixels that are in no loss: without a class, or beyond the image
_LONGEST = 4  # the longer side is at most this multiple of what the shorter one should get


class Targets:
    """The classes that a head tells apart: those of a data set without the ignored one.

    Args:
        n_classes: of the data set.
        ignore: the mask value that is not counted, which may be one of the classes; or None.

    Attributes:
        classes: the class of each output of the head, in their order.

    Example:
        >>> targets = Targets(3, ignore=0)
        >>> targets.classes, targets.of(np.array([0, 1, 2])).tolist()
        ([1, 2], [-1, 0, 1])
    """

    def __init__(self, n_classes: int, ignore: int | None) -> None:
        self.classes = [c for c in range(n_classes) if c != ignore]
        self._table = np.full(max(n_classes, (ignore or 0) + 1), NOT_COUNTED, np.int32)
        self._table[self.classes] = np.arange(len(self.classes))

    def of(self, mask: NDArray[np.integer]) -> NDArray[np.int32]:
        """The outputs that pixels should have; `NOT_COUNTED` where they are ignored."""
        return self._table[mask]


class CropSize(NamedTuple):
    """How images are scaled and cropped.

    Attributes:
        size: side of the crops, pixels.
        least, most: the shorter side is scaled to between `least` and `most` times `size`.
    """

    size: int
    least: float
    most: float


def scaled_size(size: tuple[int, int], shorter: float) -> tuple[int, int]:
    """(width, height) when the shorter side gets a length, and the longer at most four times it.

    Example:
        >>> scaled_size((200, 100), 50), scaled_size((1000, 100), 50)
        ((100, 50), (200, 20))
    """
    scale = min(shorter / min(size), _LONGEST * shorter / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def random_crop(
    image: Image.Image, mask: NDArray[np.int32], crop: CropSize, seed: int, place: int
) -> tuple[Tensor, Tensor]:
    """A crop at a random scale and place, mirrored half of the time.

    Pixels are resampled bicubically; targets are those of the nearest pixel. What the image does
    not fill, on the right and at the bottom, is the mean colour, and not counted.

    Args:
        image: RGB.
        mask: targets, int32 [H, W].
        crop: scales and size.
        seed: of the draws.
        place: in the sequence of crops; the draws depend on it and the seed alone.

    Returns:
        float32 [3, S, S], normalised; int32 [S, S].

    Example:
        >>> pixels, targets = random_crop(
        ...     Image.new("RGB", (20, 10)), np.zeros((10, 20), np.int32), CropSize(14, 1, 1), 0, 0
        ... )
        >>> pixels.shape, targets.shape
        (torch.Size([3, 14, 14]), torch.Size([14, 14]))
    """
    drawn = uniforms(seed, Purpose.GEOMETRY, np.array([place]), 4)[0].tolist()
    scale = crop.least + (crop.most - crop.least) * drawn[0]
    size = scaled_size(image.size, crop.size * scale)
    extent = [min(crop.size, side) for side in size]
    corner = [
        min(int(u * (side - part + 1)), side - part)
        for u, side, part in zip(drawn[1:3], size, extent, strict=True)
    ]
    ratio = [whole / side for whole, side in zip(image.size, size, strict=True)]
    box = [c * r for c, r in zip(corner, ratio, strict=True)]
    box += [
        min((c + part) * r, whole)
        for c, part, r, whole in zip(corner, extent, ratio, image.size, strict=True)
    ]
    piece = image.resize(
        (extent[0], extent[1]), Image.Resampling.BICUBIC, (box[0], box[1], box[2], box[3])
    )
    columns, rows = (
        nearest(whole, side)[c : c + part]
        for whole, side, c, part in zip(image.size, size, corner, extent, strict=True)
    )
    targets = mask[rows[:, None], columns]
    pixels = np.zeros((3, crop.size, crop.size), np.float32)
    labels = np.full((crop.size, crop.size), NOT_COUNTED, np.int32)
    flip = slice(None, None, -1 if drawn[3] < 0.5 else 1)
    pixels[:, : extent[1], : extent[0]] = normalised(piece).numpy()[..., flip]
    labels[: extent[1], : extent[0]] = targets[:, flip]
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def nearest(length: int, pixels: int) -> NDArray[np.int64]:
    """The pixel of a side that the centre of each pixel of the resized one lies in.

    Example:
        >>> nearest(4, 2).tolist(), nearest(2, 4).tolist()
        ([1, 3], [0, 0, 1, 1])
    """
    return (2 * np.arange(pixels) + 1) * length // (2 * pixels)
