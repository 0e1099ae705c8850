"""What a recipe can set about crops and masks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from franca_fast.errors import InputError, did_you_mean

_SMALLEST_CROP = 8  # the blur kernel reaches 4 pixels to each side


@dataclass(frozen=True)
class CropSettings:
    """The multi-crop augmentation (Franca follows DINOv2): two global crops, several local ones.

    Every crop is a random resized crop with a random flip, then, in this order: colour jitter (its
    four parts in random order), greyscale, Gaussian blur, solarisation, normalisation. A
    probability or strength of 0 turns a part off.

    Attributes:
        global_crops_size: side of the two global crops, pixels.
        global_crops_scale: smallest and largest share of the image's area in a global crop.
        local_crops_size: side of the local crops, pixels.
        local_crops_number: local crops per image; may be 0.
        local_crops_scale: the same shares for local crops.
        aspect_ratio: smallest and largest width / height of the region cut out.
        flip_probability: of a mirror image.
        jitter_probability: of colour jitter.
        brightness, contrast, saturation: each factor is uniform in [max(0, 1 - s), 1 + s].
        hue: the shift is uniform in [-hue, hue], in turns of the colour wheel (0..0.5).
        greyscale_probability: of dropping all colour.
        blur_sigma: smallest and largest standard deviation of the blur, pixels.
        blur_probability_global: of blur in the first and the second global crop.
        blur_probability_local: of blur in local crops.
        solarize_probability_global: of inverting bright pixels in the two global crops.
        solarize_threshold: pixels from this value on (of 255) are inverted.
        mean, std: normalisation of red, green and blue (ImageNet's).

    Raises:
        InputError: a value outside its range.

    Example:
        >>> CropSettings(global_crops_size=28, local_crops_size=14, local_crops_number=4).hue
        0.1
    """

    global_crops_size: int = 224
    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_size: int = 96
    local_crops_number: int = 8
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    greyscale_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability_global: tuple[float, float] = (1.0, 0.1)
    blur_probability_local: float = 0.5
    solarize_probability_global: tuple[float, float] = (0.0, 0.2)
    solarize_threshold: int = 128
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _freeze_lists(self)
        for name in ("global_crops_size", "local_crops_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < _SMALLEST_CROP:
                raise InputError(
                    f"{name}: {size!r}; accepted: a whole number from {_SMALLEST_CROP} on"
                )
        if self.local_crops_number < 0:
            raise InputError(f"local_crops_number: {self.local_crops_number}; accepted: 0 or more")
        for name in ("global_crops_scale", "local_crops_scale"):
            _check_interval(name, getattr(self, name), above=0.0, highest=1.0)
        _check_interval("aspect_ratio", self.aspect_ratio, above=0.0)
        _check_interval("blur_sigma", self.blur_sigma, above=0.0)
        for field in fields(self):
            if "probability" in field.name:
                _check_probability(field.name, getattr(self, field.name))
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue: {self.hue}; accepted: from 0 to 0.5")

    def check_patch_size(self, patch_size: int) -> None:
        """Refuses crops that a patch embedding would not cover exactly.

        Raises:
            InputError: a crop size is not a multiple of the patch size.
        """
        for name in ("global_crops_size", "local_crops_size"):
            if name.startswith("local") and self.local_crops_number == 0:
                continue
            size = getattr(self, name)
            if size % patch_size:
                below = max(1, size // patch_size) * patch_size
                raise InputError(
                    f"{name}: {size} is not a multiple of the patch size {patch_size}; "
                    f"accepted: the nearest are {below} and {below + patch_size}"
                )


@dataclass(frozen=True)
class MaskSettings:
    """Which patches of the student's global crops are hidden for the patch-level loss.

    Attributes:
        mask_sample_probability: share of the global crops that are masked.
        mask_ratio_min_max: shares of hidden patches; the masked crops of a batch take ratios in
            equal steps between the two.
        kind: "cyclic", "inverse_block", "block" or "random" (see `franca_fast.data.masking`).
        roll: whether "block" and "inverse_block" are shifted cyclically; "cyclic" is
            "inverse_block" with this shift.

    Raises:
        InputError: a value outside its range, or an unknown kind.

    Example:
        >>> MaskSettings(mask_ratio_min_max=(0.1, 0.5)).kind
        'cyclic'
    """

    mask_sample_probability: float = 0.5
    mask_ratio_min_max: tuple[float, float] = (0.1, 0.65)
    kind: str = "cyclic"
    roll: bool = False

    def __post_init__(self) -> None:
        _freeze_lists(self)
        _check_probability("mask_sample_probability", self.mask_sample_probability)
        low, high = self.mask_ratio_min_max
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"mask_ratio_min_max: {self.mask_ratio_min_max}; "
                "accepted: two shares, 0 <= min <= max <= 1"
            )
        if self.kind not in MASK_KINDS:
            raise InputError(
                f"kind of mask: {self.kind}{did_you_mean(self.kind, MASK_KINDS)}; "
                f"accepted: {', '.join(MASK_KINDS)}"
            )


MASK_KINDS = ("cyclic", "inverse_block", "block", "random")


def _freeze_lists(settings: Any) -> None:
    """Turns lists, as configuration files give them, into tuples of the declared length."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(field.default, tuple):
            if not isinstance(value, (list, tuple)) or len(value) != len(field.default):
                raise InputError(f"{field.name}: {value!r}; accepted: {len(field.default)} numbers")
            object.__setattr__(settings, field.name, tuple(value))


def _check_interval(
    name: str, value: tuple[float, float], *, above: float, highest: float = float("inf")
) -> None:
    low, high = value
    if not above < low <= high <= highest:
        limit = f" and at most {highest:g}" if highest != float("inf") else ""
        raise InputError(f"{name}: {value}; accepted: min <= max, above {above:g}{limit}")


def _check_probability(name: str, value: float | tuple[float, ...]) -> None:
    for probability in value if isinstance(value, tuple) else (value,):
        if not 0 <= probability <= 1:
            raise InputError(f"{name}: {value}; accepted: from 0 to 1")
