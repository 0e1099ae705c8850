"""What is packed, and which image goes into which shard."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from franca_fast.data.accounting import BadSample, ImageAccount
from franca_fast.data.classes import join_labels
from franca_fast.data.decoding import MAX_IMAGE_PIXELS, DecodeSettings
from franca_fast.data.randomness import Purpose, permutation
from franca_fast.data.samples import Label, OpenFiles, SampleRef
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.sources import open_source
from franca_fast.errors import InputError
from franca_fast.spelling import spell

_BLOCK = 512
_MOST_COMPRESSED = 4 << 30  # bytes of compressed shards, which stay in memory
_VERSION = 2
_LARGE_IMAGE_PIXELS = 1_000_000_000  # where large images are made smaller


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
            most = MAX_IMAGE_PIXELS if self.max_side is None else _LARGE_IMAGE_PIXELS
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


class PackPlan:
    """Which image goes into which shard; a function of the source and the settings alone."""

    def __init__(self, source: Any, settings: PackSettings) -> None:
        opened = open_source(source, max_missing_fraction=1)
        self.settings = settings
        self.account = ImageAccount()
        self._indexes = list[ShardIndex]()
        for shard in opened.shards:
            self._indexes.append(shard.index())
            self.account.open(self._indexes[-1].opened)
            if sum(sum(map(len, index.data or ())) for index in self._indexes) > _MOST_COMPRESSED:
                raise InputError(
                    f"source: '{opened.description}', compressed or from elsewhere; "
                    "accepted: plain shards and image files, or less of it"
                )
        self._starts = np.cumsum([0, *(len(index) for index in self._indexes)])
        self._sizes = np.array([_size_of(ref) for ref in self._refs(range(self.images))], np.int64)
        order = np.arange(self.images)
        if settings.seed is not None:
            order = permutation(settings.seed, Purpose.PACKING, (), self.images)
        self._shards = list(_cut(order, self._sizes, settings))
        self._labels, self.class_names = join_labels(self._read_labels(), opened.class_names)

    @property
    def images(self) -> int:
        """How many images are to be packed."""
        return int(self._starts[-1])

    def __len__(self) -> int:
        return len(self._shards)

    def length(self, shard: int) -> int:
        """How many images are to be in a shard."""
        return len(self._shards[shard])

    def samples(self, shard: int) -> Iterator[tuple[SampleRef, int]]:
        """The samples of a shard and their classes, -1 where they have none."""
        for i in self._shards[shard].tolist():
            index, inside = self._find(i)
            yield index.ref(inside), int(self._labels[i])

    def description(self) -> dict[str, Any]:
        """All that decides what is packed."""
        contents = hashlib.sha256(self._sizes.tobytes())
        for ref in self._refs(range(self.images)):
            contents.update(ref.name.encode("utf-8", "surrogateescape") + b"\0")
        return {
            "version": _VERSION,
            "settings": self.settings.description,
            "images": self.images,
            "contents": contents.hexdigest(),
            "classes": [spell(name) for name in self.class_names],
        }

    def _read_labels(self) -> list[Label | None]:
        files, remarks = OpenFiles(1), list[BadSample]()
        labels = [
            index.label(i, remarks, files) for index in self._indexes for i in range(len(index))
        ]
        files.close()
        self.account.add((), remarks)
        return labels

    def _refs(self, numbers: Iterable[int]) -> Iterator[SampleRef]:
        for i in numbers:
            index, inside = self._find(i)
            yield index.ref(inside)

    def _find(self, number: int) -> tuple[ShardIndex, int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._indexes[shard], number - int(self._starts[shard])


def _size_of(ref: SampleRef) -> int:
    if ref.size >= 0:
        return ref.size
    try:
        return os.stat(ref.path).st_size
    except OSError:
        return 0  # it will be skipped, and counted, when it is to be read


def _cut(order: np.ndarray, sizes: np.ndarray, settings: PackSettings) -> Iterator[np.ndarray]:
    """Cuts an order into shards that keep to the limits."""
    start = total = 0
    for i, size in enumerate(sizes[order].tolist()):
        member = 3 * _BLOCK + size + -size % _BLOCK  # with its class in another member
        if i > start and (total + member > settings.max_size or i - start >= settings.max_count):
            yield order[start:i]
            start, total = i, 0
        total += member
    yield order[start:]
