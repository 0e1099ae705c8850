"""What evaluations do to an image before a model sees it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from franca_fast.data.settings import CropSettings
from franca_fast.errors import InputError

_PILLOW_VERSION = int(PIL.__version__.partition(".")[0])
_BICUBIC = Image.Resampling.BICUBIC
# Up to this multiple of the crop a side is resampled whole and then cropped, which is exact to the
# bit; beyond it only the part that the crop shows.
_WHOLE = 4
_MEAN, _STD = (
    np.array(v, np.float32)[:, None, None] for v in (CropSettings.mean, CropSettings.std)
)
_REACH = 2  # pixels of the input, or of the result where it is smaller, that a bicubic weight spans


def eval_transform(img_size: int, resize: int | None = None) -> Callable[[Image.Image], Tensor]:
    """The usual transform for evaluation: resize, central crop, normalisation.

    Sizes and offsets are torchvision's: the shorter side gets `resize` pixels, the longer one
    int(resize * longer / shorter), and the crop begins at round((side - img_size) / 2). Of
    long images only what the crop shows is computed, so that no shape takes much memory.

    Args:
        img_size: side of the result, pixels.
        resize: length that the shorter side gets first (bicubic); None takes `img_size`. DINOv2's
            classification protocols use 256 for 224.

    Returns:
        a function from a PIL image to float32 [3, img_size, img_size], normalised with ImageNet's
        mean and standard deviation.

    Raises:
        InputError: sizes below 1, or `resize` below `img_size`.

    Example:
        >>> eval_transform(224, resize=256)(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 224, 224])
    """
    shorter = img_size if resize is None else resize
    if not 1 <= img_size <= shorter:
        raise InputError(
            f"img_size: {img_size} with resize {resize}; accepted: 1 <= img_size <= resize"
        )

    def transform(image: Image.Image) -> Tensor:
        return normalised(_central(image, img_size, shorter))

    return transform


def normalised(image: Image.Image) -> Tensor:
    """The pixels of an RGB image with ImageNet's mean and standard deviation taken out.

    Returns:
        float32 [3, height, width].

    Example:
        >>> normalised(Image.new("RGB", (2, 1), (124, 116, 104))).abs().max() < 0.01
        tensor(True)
    """
    levels = np.asarray(image).transpose(2, 0, 1)
    # With numpy: torch would start threads of its own in each thread that prepares images.
    pixels = np.divide(levels, np.float32(255), order="C", dtype=np.float32)
    pixels -= _MEAN
    pixels /= _STD
    return torch.from_numpy(pixels)


def _central(image: Image.Image, img_size: int, shorter: int) -> Image.Image:
    """The central square of the resized image.

    The sides are resampled one after the other, in the order that Pillow takes for the whole image,
    since between them levels are rounded.
    """
    size, resized = image.size, resized_size(image.size, shorter)
    axes = [_Axis(size[i], resized[i], img_size) for i in (0, 1)]
    image = image.crop((axes[0].first, axes[1].first, axes[0].last, axes[1].last))
    image = image if image.mode == "RGB" else image.convert("RGB")
    for i in (1, 0) if _vertical_first(size, resized) else (0, 1):
        image = axes[i].resampled(image, i)
    return image


def _vertical_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether Pillow resamples columns before rows, as it does since version 13 for some sizes."""
    (width, height), (new_width, new_height) = size, resized
    shrinks = height - new_height
    return _PILLOW_VERSION >= 13 and shrinks > 0 and shrinks > 2 * (width - new_width)


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) when the shorter side gets a length, by torchvision's rule.

    Example:
        >>> resized_size((110, 55), 28)
        (56, 28)
    """
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


class _Axis:
    """One side of an image, and what of it the central crop is made of.

    Args:
        side: of the image, pixels.
        resized: of the resized image.
        crop: of its central part.

    Attributes:
        first, last: the pixels of the side that are needed, the last one excluded.
    """

    def __init__(self, side: int, resized: int, crop: int) -> None:
        self._crop, self._offset = crop, round((resized - crop) / 2.0)
        self._whole = resized if resized <= _WHOLE * crop else 0
        self.first, self.last = 0, side
        if not self._whole:
            scale = side / resized
            begin, end = self._offset * scale, (self._offset + crop) * scale
            reach = int(_REACH * max(scale, 1.0)) + 2
            self.first, self.last = max(0, int(begin) - reach), min(side, int(end) + reach)
            # Pillow takes these in single precision, enough where they are small.
            self._box = begin - self.first, min(end - self.first, self.last - self.first)

    def resampled(self, image: Image.Image, i: int) -> Image.Image:
        """The image with the crop's pixels along this axis, which is its i-th."""
        size, box = list(image.size), [0.0, 0.0, *map(float, image.size)]
        if not self._whole:
            size[i], (box[i], box[i + 2]) = self._crop, self._box
            return image.resize((size[0], size[1]), _BICUBIC, (box[0], box[1], box[2], box[3]))
        size[i] = self._whole
        box[i], box[i + 2] = self._offset, self._offset + self._crop
        resized = image.resize((size[0], size[1]), _BICUBIC)
        return resized.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
