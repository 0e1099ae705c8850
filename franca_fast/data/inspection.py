"""Looking at data before training on it: does every image decode, and what is there."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from franca_fast.data.accounting import Accounted, BadSample, Opened
from franca_fast.data.classes import join_labels
from franca_fast.data.decoding import (
    MAX_IMAGE_PIXELS,
    BadImage,
    DecodeSettings,
    LazyImage,
    without_remarks,
)
from franca_fast.data.samples import Label, OpenFiles, read_sample
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.sources import Source, open_source
from franca_fast.data.threads import in_threads

_AT_ONCE = 256  # images that a thread takes together


@dataclass
class CheckedShards(Accounted):
    """What a check found.

    Attributes:
        shards: how many shards or folders there are.
        bad: every shard and image that cannot be used, or only in part.
        left_out: the images that a rule passes over; of each rule and shard the first ones by name.
        remarks: labels that are not understood, or belong to no image, and odd pixels.
    """

    shards: int = 0
    bad: list[BadSample] = field(default_factory=list)
    left_out: list[BadSample] = field(default_factory=list)
    remarks: list[BadSample] = field(default_factory=list)


@dataclass
class ShardStatistics(Accounted):
    """What a data set consists of.

    Attributes:
        shards, size: how many shards or folders there are, and bytes of all image files.
        widths, heights: int32 [images], pixels, upright.
        formats: images by file format, such as "JPEG".
        classes: images by label; those without one are not counted.
        class_names: of the labels 0, 1, ...; empty when labels are numbers without names.
        mean, std: of red, green and blue over all pixels, each image counting the same, from 0 to
            1; None unless asked for.
    """

    shards: int = 0
    size: int = 0
    widths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    heights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    formats: Counter[str] = field(default_factory=Counter)
    classes: Counter[int] = field(default_factory=Counter)
    class_names: list[str] = field(default_factory=list)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def check_shards(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    num_workers: int = 4,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
    progress: Callable[[int], None] | None = None,
) -> CheckedShards:
    """Decodes every image of shards or folders and lists what cannot be used.

    Args:
        source: whatever `open_source` takes.
        num_workers: threads.
        max_image_pixels: larger images count as bad, undecoded.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".
        progress: called with the number of images so far.

    Raises:
        InputError: nothing at a path, or no images there.

    Example:
        >>> checked = check_shards("FashionMNIST:split=TEST")
        >>> checked.images, checked.bad
        (1000, [])
    """
    decoding = DecodeSettings(max_image_pixels, levels)

    decoding = DecodeSettings(max_image_pixels, levels)

    def check(piece: _Piece) -> tuple[int, list[BadSample], list[BadSample]]:
        bad, remarks, files = list[BadSample](), list[BadSample](), OpenFiles(1)
        for i in piece.numbers:
            ref = piece.shard.ref(i)
            try:
                lazy = LazyImage(read_sample(ref, files), decoding, ref.name)
                lazy.load()
            except BadImage as error:
                bad.append(BadSample(ref.location, error.reason, error.detail))
            else:
                remarks += lazy.remarks(ref.location)
                piece.shard.label(i, remarks, files)
        files.close()
        return len(piece.numbers) - len(bad), bad, remarks

    opened = open_source(source, max_missing_fraction=1)
    found = CheckedShards(len(opened.shards))

    def open_shard(known: Opened) -> None:
        found.account.found += known.found
        found.bad += known.skipped
        found.left_out += known.left_out
        found.remarks += known.remarks

    with without_remarks():
        pieces = _pieces(opened, open_shard)
        for images, bad, remarks in in_threads(check, pieces, num_workers, threading.Event()):
            found.account.used += images
            found.bad += bad
            found.remarks += remarks
            if progress is not None:
                progress(found.images)
    account = found.account
    for entries, counter in (
        (found.bad, account.skipped),
        (found.left_out, account.left_out),
        (found.remarks, account.remarks),
    ):
        entries.sort(key=lambda entry: entry.location)
        for entry in entries:  # listed in the result, so the log need not name them
            counter[entry.reason] += entry.count
    return found


def shard_statistics(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    colours: bool = False,
    num_workers: int = 4,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
    progress: Callable[[int], None] | None = None,
) -> ShardStatistics:
    """Counts images, sizes, formats and classes of shards or folders.

    Args:
        source: whatever `open_source` takes.
        colours: also decode the images, at a small size where the format allows it, for the mean
            and the standard deviation of the colours; without it only their headers are read.
        num_workers: threads.
        max_image_pixels: larger images are skipped.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".
        progress: called with the number of images so far.

    Raises:
        InputError: nothing at a path, or no images there.

    Example:
        >>> statistics = shard_statistics("FashionMNIST:split=TEST", colours=True)
        >>> statistics.images, statistics.widths.max().item(), round(statistics.mean[0], 2)
        (1000, 28, 0.29)
    """
    decoding = DecodeSettings(max_image_pixels, levels)

    decoding = DecodeSettings(max_image_pixels, levels)

    def measure(
        piece: _Piece,
    ) -> tuple[list[tuple[Any, ...]], list[np.ndarray], list[BadSample], list[BadSample]]:
        rows, sums, bad = list[tuple[Any, ...]](), list[np.ndarray](), list[BadSample]()
        remarks, files = list[BadSample](), OpenFiles(1)
        for i in piece.numbers:
            ref = piece.shard.ref(i)
            try:
                data = read_sample(ref, files)
                lazy = LazyImage(data, decoding, ref.name)
                if colours:
                    sums.append(_colour_sums(lazy))
            except BadImage as error:
                bad.append(BadSample(ref.location, error.reason, error.detail))
            else:
                remarks += lazy.remarks(ref.location)
                label = piece.shard.label(i, remarks, files)
                rows.append((*lazy.size, lazy.format, label, len(data)))
        files.close()
        return rows, sums, bad, remarks

    opened = open_source(source, max_missing_fraction=1)
    found = ShardStatistics(len(opened.shards))
    account, labels = found.account, Counter[Label]()
    sizes, total = list[np.ndarray](), np.zeros((2, 3))
    with without_remarks():
        pieces = _pieces(opened, account.open)
        for rows, sums, bad, remarks in in_threads(measure, pieces, num_workers, threading.Event()):
            sizes.append(np.array([row[:2] for row in rows], np.int32).reshape(-1, 2))
            found.formats.update(row[2] for row in rows)
            labels.update(row[3] for row in rows if row[3] is not None)
            found.size += sum(row[4] for row in rows)
            account.used += len(rows)
            total += sum(sums)
            account.add(bad, remarks)
            if progress is not None:
                progress(found.images)
    numbers, found.class_names = join_labels(list(labels), opened.class_names)
    for number, count in zip(numbers.tolist(), labels.values(), strict=True):
        found.classes[number] += count
    if sizes:
        found.widths, found.heights = np.concatenate(sizes).T
    if colours and found.images:
        mean, square = total / found.images
        found.mean = tuple(mean.tolist())
        found.std = tuple(np.sqrt(np.maximum(0, square - mean**2)).tolist())
    return found


class _Piece(NamedTuple):
    """Some samples of a shard: as many as are worth a thread's while."""

    shard: ShardIndex
    numbers: range


def _pieces(source: Source, opened: Callable[[Opened], None]) -> Iterator[_Piece]:
    """The samples of all shards; `opened` is told of each shard before them."""
    for shard in source.shards:
        index = shard.index()
        opened(index.opened)
        for start in range(0, len(index), _AT_ONCE):
            yield _Piece(index, range(start, min(start + _AT_ONCE, len(index))))


def _colour_sums(lazy: LazyImage) -> np.ndarray:
    """The means over an image of red, green and blue, and of their squares: float64 [2, 3]."""
    image = lazy.load((64, 64))
    pixels = np.asarray(image, np.float64) / 255
    pixels = pixels.reshape(-1, 1 if image.mode == "L" else 3)
    return np.stack([pixels.mean(0), (pixels**2).mean(0)]) * np.ones((2, 3))
