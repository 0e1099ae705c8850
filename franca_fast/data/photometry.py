"""Colour jitter, greyscale, blur, solarisation and normalisation of a whole batch of crops.

Everything is plain tensor arithmetic with parameters per crop, so it runs on any device. The
parameters are drawn on the CPU, where it is known which crops each part touches; the others are
never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.data.settings import CropSettings

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow converts to grey
_BLUR_RADIUS = 4


@dataclass
class PhotometricParameters:
    """What to do to each of n crops.

    Attributes:
        jitter: bool [n], whether the colour is changed.
        factors: float32 [n, 4]: brightness, contrast, saturation, hue.
        order: int64 [n, 4]: the columns of `factors` in the order in which they are applied.
        greyscale: bool [n].
        sigma: float32 [n], pixels; 0 is no blur.
        solarize: bool [n].
    """

    jitter: NDArray[np.bool_]
    factors: NDArray[np.float32]
    order: NDArray[np.int64]
    greyscale: NDArray[np.bool_]
    sigma: NDArray[np.float32]
    solarize: NDArray[np.bool_]


def draw_parameters(
    settings: CropSettings, seed: int, numbers: NDArray[np.int64], *, local: bool
) -> PhotometricParameters:
    """Draws the parameters of all global or all local crops of b images.

    Args:
        settings: strengths and probabilities.
        seed: of the run.
        numbers: int64 [b], the place of each sample in the sequence.
        local: which crops.

    Returns:
        parameters of [2 b] or [L b] crops, crop-major.
    """
    crops = range(2, 2 + settings.local_crops_number) if local else range(2)
    identity = np.stack([np.tile(numbers, len(crops)), np.repeat(crops, len(numbers))], 1)
    u = uniforms(seed, Purpose.PHOTOMETRY, identity, 13)
    blur_probability: Sequence[float] = settings.blur_probability_global
    solarize_probability: Sequence[float] = settings.solarize_probability_global
    if local:
        blur_probability = [settings.blur_probability_local] * len(crops)
        solarize_probability = [0.0] * len(crops)
    blur = np.repeat(blur_probability, len(numbers))
    solarize = np.repeat(solarize_probability, len(numbers))
    strengths = np.array([settings.brightness, settings.contrast, settings.saturation])
    low = np.append(np.maximum(0, 1 - strengths), -settings.hue)
    high = np.append(1 + strengths, settings.hue)
    sigma_low, sigma_high = settings.blur_sigma
    sigma = sigma_low + (sigma_high - sigma_low) * u[:, 11]
    return PhotometricParameters(
        jitter=u[:, 0] < settings.jitter_probability,
        factors=(low + (high - low) * u[:, 1:5]).astype(np.float32),
        order=u[:, 5:9].argsort(1, kind="stable"),
        greyscale=u[:, 9] < settings.greyscale_probability,
        sigma=np.where(u[:, 10] < blur, sigma, 0).astype(np.float32),
        solarize=u[:, 12] < solarize,
    )


def photometric(crops: Tensor, parameters: PhotometricParameters, settings: CropSettings) -> Tensor:
    """Applies the parameters and normalises.

    Args:
        crops: uint8 [n, S, S, C] on any device; C = 1 (all grey) or 3.
        parameters: of the n crops.
        settings: threshold of solarisation, mean and std.

    Returns:
        float32 [n, 3, S, S] on the same device.

    Example:
        >>> settings = CropSettings(global_crops_size=8, local_crops_number=0)
        >>> parameters = draw_parameters(settings, 0, np.arange(2), local=False)
        >>> photometric(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), parameters, settings).shape
        torch.Size([4, 3, 8, 8])
    """
    images = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    images /= 255
    edits = [edit for edit in _edits(parameters, settings, images.shape[1]) if len(edit.rows)]
    sizes = [len(edit.rows) for edit in edits]
    no_rows = np.empty(0, np.int64)
    rows = _to(images.device, np.int64, [no_rows, *(edit.rows for edit in edits)])
    numbers: list[ArrayLike] = [settings.mean, settings.std, *(edit.factors for edit in edits)]
    values = _to(images.device, np.float32, numbers)
    mean, std, *factors = values.split([len(settings.mean), len(settings.std), *sizes])
    for edit, chosen, factor in zip(edits, rows.split(sizes), factors, strict=True):
        changed = edit.operation(images.index_select(0, chosen), factor[:, None, None, None])
        images.index_copy_(0, chosen, changed)
    std = std[:, None, None]
    return torch.addcmul(mean[:, None, None] / -std, images, 1 / std)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each image with its own width; the kernel has 9 x 9 pixels, borders are reflected.

    Args:
        images: [n, C, H, W], H and W at least 5.
        sigma: [n], pixels, above 0.

    Returns:
        the same shape.
    """
    n, channels, height, width = images.shape
    reach = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    kernel = torch.softmax(-0.5 * (reach / sigma[:, None]) ** 2, 1)
    kernel = kernel.to(images.dtype).repeat_interleave(channels, 0)[:, None, None]
    padded = F.pad(images, [_BLUR_RADIUS] * 4, mode="reflect")
    planes = padded.reshape(1, n * channels, *padded.shape[2:])
    planes = F.conv2d(planes, kernel, groups=n * channels)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=n * channels)
    return planes.reshape(n, channels, height, width)


class _Edit(NamedTuple):
    """A change of some crops.

    Attributes:
        operation: of images [m, C, H, W] and factors [m, 1, 1, 1].
        rows: the m crops.
        factors: float32 [m].
    """

    operation: Callable[[Tensor, Tensor], Tensor]
    rows: NDArray[np.intp]
    factors: NDArray[np.float32]


def _edits(
    parameters: PhotometricParameters, settings: CropSettings, channels: int
) -> Iterator[_Edit]:
    """All changes in turn; brightness, contrast, saturation and hue in each crop's own order."""

    def edit(operation: Callable[[Tensor, Tensor], Tensor], chosen: Any, factors: Any) -> _Edit:
        rows = np.flatnonzero(chosen)
        return _Edit(operation, rows, factors[rows])

    for turn in range(4):
        for column, (identity, operation) in enumerate(_JITTER):
            if channels == 1 and operation in (_saturation, _hue):
                continue  # grey has neither
            factors = parameters.factors[:, column]
            turned = parameters.jitter & (parameters.order[:, turn] == column)
            yield edit(operation, turned & (factors != identity), factors)
    if channels == 3:
        yield edit(_greyscale, parameters.greyscale, np.zeros_like(parameters.sigma))
    yield edit(_blur, parameters.sigma, parameters.sigma)
    threshold = np.full_like(parameters.sigma, settings.solarize_threshold / 255)
    yield edit(_solarize, parameters.solarize, threshold)


def _to(device: torch.device, dtype: DTypeLike, arrays: Sequence[ArrayLike]) -> Tensor:
    """Arrays one after the other on a device, in one copy that the host does not wait for."""
    joined = torch.from_numpy(np.concatenate(arrays, dtype=dtype))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return joined.to(device, non_blocking=True)


def _grey(images: Tensor) -> Tensor:
    """The luma [n, 1, H, W] of [n, C, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _greyscale(images: Tensor, _: Tensor) -> Tensor:
    return _grey(images).expand_as(images)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    return gaussian_blur(images, sigma.flatten())


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(images), images, factor).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images).expand_as(images), images, factor).clamp_(0, 1)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of the HSV colour by `shift` turns; saturation and value stay.

    A hue h in [0, 6) gives the channel with offset k (5, 3, 1 for red, green, blue) the value
    v - chroma * clamp(min(x, 4 - x), 0, 1), x = (k + h) mod 6.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    # The hue is taken from the channel that is largest; lerp chooses, being faster than where.
    hue = (red - green) + 4 * chroma
    hue = hue.lerp_((blue - red) + 2 * chroma, (value == green).to(images.dtype))
    hue = hue.lerp_(green - blue, (value == red).to(images.dtype))
    hue = hue.div_(chroma.clamp(min=1e-8)).add_(6 * shift[:, 0])
    offsets = torch.arange(5, 0, -2, dtype=hue.dtype, device=hue.device)
    x = hue[:, None] + offsets[:, None, None]
    x -= (x / 6).floor_().mul_(6)  # the remainder, which torch's own takes longer for
    x = torch.minimum(x, 4 - x).clamp_(0, 1)
    return torch.addcmul(value[:, None], chroma[:, None], x, value=-1)


# The factor that changes nothing, and the operation, in the order of the columns.
_JITTER: tuple[tuple[float, Callable[[Tensor, Tensor], Tensor]], ...] = (
    (1.0, _brightness),
    (1.0, _contrast),
    (1.0, _saturation),
    (0.0, _hue),
)
