"""Random resized crops: where they lie, and cutting them out with Pillow.

All crops of all images of a batch get their regions at once; each image is then decoded, cut and
forgotten before the next, so that memory does not grow with the size of the photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca_fast.data.decoding import LazyImage, held_in_memory
from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.data.settings import CropSettings

_ATTEMPTS = 10


class CropRegions(NamedTuple):
    """Regions of the crops of n images, crops being the two global ones, then the local ones.

    Attributes:
        boxes: float64 [n, 2 + L, 4]: left, top, right, bottom in pixels.
        flips: bool [n, 2 + L].
    """

    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]


def crop_regions(
    settings: CropSettings,
    seed: int,
    numbers: NDArray[np.int64],
    sizes: Sequence[tuple[int, int]] | NDArray[np.int64],
) -> CropRegions:
    """Draws regions: the area uniform in the scale, the aspect uniform in its logarithm.

    Of ten attempts the first that fits into the image counts; failing that, the largest central
    region whose aspect lies within the limits. Regions are not rounded to whole pixels.

    Args:
        settings: scales, aspects and probability of a flip.
        seed: of the run.
        numbers: int64 [n], the place of each sample in the sequence.
        sizes: (width, height) of each image.

    Example:
        >>> crop_regions(CropSettings(), 0, np.arange(2), [(64, 48), (28, 28)]).boxes.shape
        (2, 10, 4)
    """
    crops = 2 + settings.local_crops_number
    scales = [settings.global_crops_scale] * 2
    scales += [settings.local_crops_scale] * settings.local_crops_number
    low, high = np.array(scales).T
    per_crop = 2 * _ATTEMPTS + 3  # areas, aspects, the place, the flip
    drawn = uniforms(seed, Purpose.GEOMETRY, numbers, crops * per_crop)
    drawn = drawn.reshape(len(numbers), crops, per_crop)
    extent = np.asarray(sizes, np.float64).reshape(-1, 1, 2)

    shares = low[:, None] + (high - low)[:, None] * drawn[..., :_ATTEMPTS]
    aspect_low, aspect_high = np.log(settings.aspect_ratio)
    aspects = aspect_low + (aspect_high - aspect_low) * drawn[..., _ATTEMPTS : 2 * _ATTEMPTS]
    areas = shares * extent.prod(-1)[..., None]
    # [n, crops, attempts, 2]: width and height of the attempts
    attempts = np.sqrt(np.stack([areas * np.exp(aspects), areas * np.exp(-aspects)], -1))
    fits = (attempts <= extent[..., None, :]).all(-1)
    chosen = fits.argmax(-1)[..., None, None]
    size = np.take_along_axis(attempts, chosen, 2)[:, :, 0]  # [n, crops, 2]

    whole = extent.copy()
    whole[..., 0] = np.minimum(extent[..., 0], extent[..., 1] * settings.aspect_ratio[1])
    whole[..., 1] = np.minimum(extent[..., 1], extent[..., 0] / settings.aspect_ratio[0])
    place = drawn[..., 2 * _ATTEMPTS : 2 * _ATTEMPTS + 2]
    found = fits.any(-1)[..., None]
    size = np.where(found, size, whole)
    corner = np.where(found, place, 0.5) * (extent - size)
    flips = drawn[..., -1] < settings.flip_probability
    return CropRegions(np.concatenate([corner, corner + size], -1), flips)


class CropBuffer:
    """Collects the crops of a batch as bytes.

    A batch of grey images stays one channel deep, which makes everything later three times
    cheaper; the first image with colours turns the buffer into RGB.

    Args:
        settings: sizes and number of crops.
        batch_size: b.

    Attributes:
        global_crops: uint8 [2 b, S, S, C], crop-major, C = 1 or 3.
        local_crops: uint8 [L b, s, s, C], crop-major.
    """

    def __init__(self, settings: CropSettings, batch_size: int) -> None:
        self._batch_size = batch_size
        self._sizes = [settings.global_crops_size] * 2
        self._sizes += [settings.local_crops_size] * settings.local_crops_number
        big, small = settings.global_crops_size, settings.local_crops_size
        self.global_crops = np.empty((2 * batch_size, big, big, 1), np.uint8)
        shape = (settings.local_crops_number * batch_size, small, small, 1)
        self.local_crops = np.empty(shape, np.uint8)

    def cut(
        self,
        slot: int,
        lazy: LazyImage,
        boxes: NDArray[np.float64],
        flips: NDArray[np.bool_],
    ) -> None:
        """Decodes an image and puts its crops in place.

        Args:
            slot: place of the image in the batch.
            lazy: the image.
            boxes: [2 + L, 4], pixels of the image's full size.
            flips: [2 + L].

        Raises:
            BadImage: the pixels cannot be decoded, or not be held in memory.
        """
        extent = np.array(lazy.size * 2, np.float64)
        # A JPEG need not be decoded larger than its finest crop is sampled.
        finest = max(
            size / side
            for size, box in zip(self._sizes, boxes, strict=True)
            for side in (box[2] - box[0], box[3] - box[1])
        )
        image = lazy.load((lazy.size[0] * finest, lazy.size[1] * finest))
        if image.mode == "RGB" and self.global_crops.shape[-1] == 1:
            self.global_crops = np.repeat(self.global_crops, 3, -1)
            self.local_crops = np.repeat(self.local_crops, 3, -1)
        relative = boxes / extent * np.array(image.size * 2)
        relative = np.clip(relative, 0, image.size * 2)  # rounding must not leave the image
        for crop, (size, box, flip) in enumerate(
            zip(self._sizes, relative.tolist(), flips.tolist(), strict=True)
        ):
            # First to twice the size by whole numbers: much faster for large images that are not
            # JPEG, and as exact as the decoding of JPEG at a part of its size.
            with held_in_memory():
                piece = image.resize(
                    (size, size), Image.Resampling.BICUBIC, box=tuple(box), reducing_gap=2.0
                )
            pixels = np.frombuffer(piece.tobytes(), np.uint8).reshape(size, size, -1)
            target = self.global_crops if crop < 2 else self.local_crops
            row = (crop if crop < 2 else crop - 2) * self._batch_size + slot
            target[row] = pixels[:, ::-1] if flip else pixels
