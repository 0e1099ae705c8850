"""The samples of one shard or folder: where they lie and of which class they are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from franca_fast.data.accounting import LABEL_UNREAD, BadSample, Opened
from franca_fast.data.decoding import BadImage
from franca_fast.data.samples import BadLabel, Label, OpenFiles, SampleRef, parse_label, read_sample

MAX_LABEL_BYTES = 1 << 20


class ShardIndex:
    """The samples of one shard, held compactly.

    Args:
        names: one per sample; or all of them, encoded, with a zero byte between two.
        path: the shard, or the folder when the names are of files in it.
        data: the n image files themselves, when they cannot be read at a place.
        places: int64 [n, 2] offsets and sizes; None for whole files.
        label_places: int64 [n, 2 k] of at most k files that may say the class of each image, size
            -1 where there is none.
        label_data: their contents, when they cannot be read at a place.
        classes: names of the classes 0, 1, ..., each list with the place from which on it holds.
        labels: int64 [n] classes, when they are known without reading; -1 is unknown.
        opened: what is known of all images there; None when each of them is a sample.

    Attributes:
        memory: bytes that the index holds.
        data, opened: as given.
    """

    def __init__(
        self,
        names: Sequence[str] | bytes,
        path: str,
        *,
        data: Sequence[bytes] | None = None,
        places: NDArray[np.int64] | None = None,
        label_places: NDArray[np.int64] | None = None,
        label_data: Sequence[Sequence[bytes]] | None = None,
        classes: Sequence[tuple[int, Sequence[str]]] = (),
        labels: NDArray[np.int64] | None = None,
        opened: Opened | None = None,
    ) -> None:
        # One object per name would take most of the memory when there are millions of them.
        self._names = names if isinstance(names, bytes) else joined_names(names)
        zeros = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._starts = np.concatenate([[0], zeros + 1])
        self._ends = np.concatenate([zeros, [len(self._names)]])
        self._length = len(self._ends) if self._names else 0
        self._path, self.data = path, data
        self._places = places
        self._label_places, self._label_data = label_places, label_data
        self._classes, self._labels = classes, labels
        self.opened = Opened(self._length) if opened is None else opened
        tables = [self._starts, self._ends, places, label_places, labels]
        self.memory = sum(map(len, data or ())) + len(self._names)
        self.memory += sum(table.nbytes for table in tables if table is not None)

    def __len__(self) -> int:
        return self._length

    @property
    def damage(self) -> BadSample | None:
        """What is wrong with the shard as a whole; None when nothing is."""
        return next(iter(self.opened.skipped), None)

    def ref(self, i: int) -> SampleRef:
        """Where the i-th image lies."""
        raw = self._names[self._starts[i] : self._ends[i]]
        name = raw.decode("utf-8", "surrogateescape")
        if self._places is None:
            return SampleRef(name, os.path.join(self._path, os.fsdecode(raw)))
        data = None if self.data is None else self.data[i]
        offset, size = self._places[i].tolist()
        return SampleRef(name, self._path, offset, size, data)

    def label(
        self, i: int, remarks: list[BadSample] | None = None, files: OpenFiles | None = None
    ) -> Label | None:
        """The class of the i-th image, read from the shard if need be.

        Args:
            i: number of the image.
            remarks: labels that are not understood are put down here.
            files: keeps shards open between calls.

        Returns:
            the class's name; its number where the class has no name; None when it is unknown.
        """
        if self._labels is not None:
            return None if self._labels[i] < 0 else self._named(int(self._labels[i]), 0)
        if self._label_places is None:
            return None
        problem = ""
        for k, (offset, size) in enumerate(self._label_places[i].reshape(-1, 2).tolist()):
            if size < 0:
                continue
            try:
                label = parse_label(self._read_label(i, k, offset, size, files))
            except (BadImage, BadLabel) as error:
                problem = problem or str(error)
            else:
                if label is not None:
                    return self._named(label, offset)
        if problem and remarks is not None:
            remarks.append(BadSample(self.ref(i).location, LABEL_UNREAD, problem))
        return None

    def _read_label(self, i: int, k: int, offset: int, size: int, files: OpenFiles | None) -> bytes:
        if size > MAX_LABEL_BYTES:
            raise BadLabel(f"{size} bytes")
        if self._label_data is not None:
            return self._label_data[i][k]
        return read_sample(SampleRef("", self._path, offset, size), files)

    def _named(self, label: Label, place: int) -> Label:
        lists = [names for start, names in self._classes if start <= place]
        if isinstance(label, str) or not lists or label >= len(lists[-1]):
            return label
        return lists[-1][label]


def joined_names(names: Sequence[str]) -> bytes:
    """Names as `ShardIndex` keeps them."""
    return "\0".join(names).encode("utf-8", "surrogateescape")
