"""Which image goes into which shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from franca_fast.data.accounting import BadSample, ImageAccount
from franca_fast.data.classes import join_labels
from franca_fast.data.pack_settings import PackSettings
from franca_fast.data.randomness import Purpose, permutation
from franca_fast.data.samples import Label, OpenFiles, SampleRef
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.sources import open_source
from franca_fast.errors import InputError
from franca_fast.spelling import spell

_BLOCK = 512
_MOST_COMPRESSED = 4 << 30  # bytes of compressed shards, which stay in memory
_VERSION = 2


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
