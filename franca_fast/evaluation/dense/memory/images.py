"""Images of the memory of in-context segmentation: cropped and coloured at random, or as they are.

As open-hummingbird's training transform: brightness, contrast, saturation and hue, each with its
own probability, then a random resized crop of the image and its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.data.segmented_images import Mask, SegmentedImages
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.patch_labels import nearest_indices

_ATTEMPTS = 10
_ASPECTS = (3 / 4, 4 / 3)
_DRAWS = 4 * _ATTEMPTS + 8  # areas, aspects and two places of the attempts; jitter


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image of the memory.

    Attributes:
        size: side of the result, pixels.
        scale: range of a crop's area as a share of the image's. Above 1 the attempts that do not
            fit are drawn again, ten times at most.
        jitter: brightness, contrast and saturation change by up to this share, the hue by up to
            this part of its circle.
        probability: of each of these four.

    Raises:
        InputError: a range that is empty, or a number outside of what it means.
    """

    size: int = 518
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.1
    probability: float = 0.5

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < np.inf:
            raise InputError(f"crop_scale: {self.scale}; accepted: 0 < smallest <= largest")
        if not 0 <= self.jitter <= 0.5:
            raise InputError(f"jitter: {self.jitter}; accepted: from 0 to 0.5")
        if not 0 <= self.probability <= 1:
            raise InputError(f"jitter_probability: {self.probability}; accepted: from 0 to 1")


class MemoryImages(SegmentedImages):
    """A set as the memory sees it in one epoch; what is drawn depends on names and not on order.

    Args:
        images: the set.
        numbers: of each of its images, by which random numbers are drawn.
        augmentation: what happens to them.
        seed: of the memory.
        epoch: another one draws other numbers.
    """

    def __init__(
        self,
        images: SegmentedImages,
        numbers: Sequence[int],
        augmentation: Augmentation,
        seed: int,
        epoch: int,
    ) -> None:
        self._images, self._numbers = images, numbers
        self._augmentation, self._seed, self._epoch = augmentation, seed, epoch
        self.names, self.class_names, self.ignore = images.names, images.class_names, images.ignore

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        """The image and its mask, both square; see `SegmentedImages.load`."""
        image, mask = self._images.load(i)
        counter = np.array([[self._numbers[i], self._epoch]])
        drawn = uniforms(self._seed, Purpose.MEMORY_IMAGES, counter, _DRAWS)[0]
        what = self._augmentation
        box = crop_box(image.size, what.scale, drawn[: 4 * _ATTEMPTS])
        image = jittered(image, what, drawn[4 * _ATTEMPTS :])
        side = (what.size, what.size)
        crop = image.crop(box).resize(side, Image.Resampling.BILINEAR)
        left, top, right, bottom = box
        rows = top + nearest_indices(bottom - top, what.size)
        columns = left + nearest_indices(right - left, what.size)
        return crop, mask[rows[:, None], columns]

    def fingerprint(self) -> str:
        """See `SegmentedImages.fingerprint`."""
        drawn = f"{asdict(self._augmentation)} seed {self._seed} epoch {self._epoch}"
        return f"{self._images.fingerprint()}\n{drawn}"


class Part(SegmentedImages):
    """Some consecutive images of a set.

    Args:
        images: the set.
        rows: which.
    """

    def __init__(self, images: SegmentedImages, rows: range) -> None:
        self._images, self._rows = images, rows
        self.names = images.names[rows.start : rows.stop]
        self.class_names, self.ignore = images.class_names, images.ignore

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        """See `SegmentedImages.load`."""
        return self._images.load(self._rows[i])

    def fingerprint(self) -> str:
        """See `SegmentedImages.fingerprint`."""
        return f"{self._images.fingerprint()}\n{self._rows}"


def crop_box(
    size: tuple[int, int], scale: tuple[float, float], drawn: NDArray[np.float64]
) -> tuple[int, int, int, int]:
    """The region of a random resized crop, by torchvision's rule.

    The area is uniform in the scale, the aspect uniform in its logarithm, from 3/4 to 4/3; sides
    are rounded. The first of ten attempts that fits counts, else the largest central region whose
    aspect is within these limits.

    Args:
        size: (width, height) of the image.
        scale: range of the area, as a share of the image's.
        drawn: 40 numbers in [0, 1): areas, aspects, and the places of the ten attempts.

    Returns:
        left, top, right, bottom, pixels.

    Example:
        >>> crop_box((40, 30), (0.25, 0.25), np.full(40, 0.5))
        (12, 7, 29, 24)
    """
    width, height = size
    areas, aspects, across, down = drawn.reshape(4, _ATTEMPTS)
    area = width * height * (scale[0] + (scale[1] - scale[0]) * areas)
    low, high = np.log(_ASPECTS)
    aspect = np.exp(low + (high - low) * aspects)
    widths = np.rint(np.sqrt(area * aspect)).astype(int)
    heights = np.rint(np.sqrt(area / aspect)).astype(int)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if fits.any():
        i = int(fits.argmax())
        w, h = int(widths[i]), int(heights[i])
        left, top = int(across[i] * (width - w + 1)), int(down[i] * (height - h + 1))
    else:
        w, h = min(width, round(height * _ASPECTS[1])), min(height, round(width / _ASPECTS[0]))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jittered(
    image: Image.Image, augmentation: Augmentation, drawn: NDArray[np.float64]
) -> Image.Image:
    """An RGB image with its brightness, contrast, saturation and hue changed, in this order.

    Args:
        image: the image.
        augmentation: how much, and how often.
        drawn: 8 numbers in [0, 1): whether, and how much, of each of the four.

    Example:
        >>> grey = Image.new("RGB", (1, 1), (100, 100, 100))
        >>> brighter = np.array([0, 1, 1, 1, 1, 0, 0, 0.0])
        >>> jittered(grey, Augmentation(), brighter).getpixel((0, 0))
        (110, 110, 110)
    """
    chosen = drawn[:4] < augmentation.probability
    changes = augmentation.jitter * (2 * drawn[4:] - 1)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, use, change in zip(enhancers, chosen, changes, strict=False):
        if use:
            image = enhancer(image).enhance(1 + float(change))
    return _turned(image, float(changes[3])) if chosen[3] else image


def _turned(image: Image.Image, turns: float) -> Image.Image:
    """The image with its hue moved by a part of the circle, of which Pillow knows 256 steps."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int64) + int(turns * 255)) % 256
    hue = Image.fromarray(moved.astype(np.uint8), "L")
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
