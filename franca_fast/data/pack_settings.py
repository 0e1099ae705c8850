"""How images are packed into shards."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from franca_fast.data.decoding import MAX_IMAGE_PIXELS, DecodeSettings
from franca_fast.errors import InputError

LARGE_IMAGE_PIXELS = 1_000_000_000  # the cap where large images are made smaller


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Attributes:
        pattern: names of the shards, with one number in it as `%06d`.
        max_size: bytes of a shard at most, counted before images are made smaller; an image that
            is larger gets a shard of its own.
        max_count: images of a shard at most.
        seed: of the shuffle; None keeps the order.
        max_side: images whose longer side is longer, in pixels, are made smaller and become JPEG
            files; None copies every file as it is.
        quality: of those JPEG files, 1 to 100.
        max_image_pixels: larger images are skipped; None is 64 million, and 1,000 million where
            `max_side` makes large images smaller.
        levels: how levels of more than 8 bits become 0 to 255 in those JPEG files: "full",
            "minmax" or "LOW:HIGH".

    Raises:
        InputError: a value outside its range.
    """

    pattern: str = "shard-%06d.tar"
    max_size: int = 1 << 30
    max_count: int = 10_000
    seed: int | None = 0
    max_side: int | None = None
    quality: int = 92
    max_image_pixels: int | None = None
    levels: str = "full"

    def __post_init__(self) -> None:
        if (
            not re.fullmatch(r"[^%/\\]*%\d{0,2}d[^%/\\]*\.tar", self.pattern)
            or self.pattern[0] == "."
        ):
            raise InputError(f"pattern: {self.pattern}; accepted: a name such as shard-%06d.tar")
        for name in ("max_size", "max_count", "max_side", "quality"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name}: {value!r}; accepted: a whole number from 1 on")
        if self.seed is not None and type(self.seed) is not int:
            raise InputError(
                f"seed: {self.seed!r}; accepted: a whole number, or None for no shuffle"
            )
        if self.quality > 100:
            raise InputError(f"quality: {self.quality}; accepted: from 1 to 100")
        _ = self.decoding

    @property
    def decoding(self) -> DecodeSettings:
        """Which images are skipped, and how levels are mapped."""
        most = self.max_image_pixels
        if most is None:
            most = MAX_IMAGE_PIXELS if self.max_side is None else LARGE_IMAGE_PIXELS
        return DecodeSettings(most, self.levels)

    @property
    def description(self) -> dict[str, Any]:
        """The settings as `packing.json` holds them, and did before there were the last two."""
        newer = ("max_image_pixels", "levels")
        defaults = PackSettings.__dataclass_fields__
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in newer or value != defaults[name].default
        }
