"""Looking at data before training on it: does every image decode, and what is there."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from franca_fast.data.accounting import BadSample, SkipCounter
from franca_fast.data.decoding import (
    MAX_IMAGE_PIXELS,
    BadImage,
    DecodeSettings,
    LazyImage,
    without_remarks,
)
from franca_fast.data.samples import OpenFiles, SampleRef, read_sample
from franca_fast.data.sources import Source, open_source
from franca_fast.data.threads import in_threads

_AT_ONCE = 256  # images that a thread takes together


@dataclass
class CheckedShards:
    """What a check found.

    Attributes:
        shards, images: how many there are, bad images not counted.
        bad: every shard and image that cannot be used, or only in part.
        skipped: the same, counted by reason.
    """

    shards: int = 0
    images: int = 0
    bad: list[BadSample] = field(default_factory=list)
    skipped: SkipCounter = field(default_factory=SkipCounter)


@dataclass
class ShardStatistics:
    """What a data set consists of.

    Attributes:
        shards, images, size: how many there are, and bytes of all image files.
        widths, heights: int32 [images], pixels, upright.
        formats: images by file format, such as "JPEG".
        classes: images by label; those without one are not counted.
        class_names: of the labels 0, 1, ...; empty when unknown.
        mean, std: of red, green and blue over all pixels, each image counting the same, from 0 to
            1; None unless asked for.
        skipped: what cannot be used.
    """

    shards: int = 0
    images: int = 0
    size: int = 0
    widths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    heights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    formats: Counter[str] = field(default_factory=Counter)
    classes: Counter[int] = field(default_factory=Counter)
    class_names: list[str] = field(default_factory=list)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    skipped: SkipCounter = field(default_factory=SkipCounter)


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

    def check(refs: list[tuple[SampleRef, int | None]]) -> tuple[int, list[BadSample]]:
        bad = list[BadSample]()
        files = OpenFiles(1)
        for ref, _ in refs:
            try:
                LazyImage(read_sample(ref, files), decoding).load()
            except BadImage as error:
                bad.append(BadSample(ref.location, error.reason, error.detail))
        files.close()
        return len(refs) - len(bad), bad

    found = CheckedShards()
    opened = open_source(source, max_missing_fraction=1)
    found.shards = len(opened.shards)
    with without_remarks():
        pieces = _pieces(opened, found.bad.append, labels=False)
        for images, bad in in_threads(check, pieces, num_workers, threading.Event()):
            found.images += images
            found.bad += bad
            if progress is not None:
                progress(found.images)
    found.bad.sort(key=lambda bad: bad.location)
    for bad_sample in found.bad:
        found.skipped[bad_sample.reason] += bad_sample.count
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

    def measure(
        refs: list[tuple[SampleRef, int | None]],
    ) -> tuple[list[tuple[Any, ...]], list[np.ndarray], list[BadSample]]:
        rows, sums, bad = list[tuple[Any, ...]](), list[np.ndarray](), list[BadSample]()
        files = OpenFiles(1)
        for ref, label in refs:
            try:
                data = read_sample(ref, files)
                lazy = LazyImage(data, decoding)
                if colours:
                    sums.append(_colour_sums(lazy))
                rows.append((*lazy.size, lazy.format, label, len(data)))
            except BadImage as error:
                bad.append(BadSample(ref.location, error.reason, error.detail))
        files.close()
        return rows, sums, bad

    opened = open_source(source, max_missing_fraction=1)
    found = ShardStatistics(shards=len(opened.shards), class_names=opened.class_names)
    sizes, total = list[np.ndarray](), np.zeros((2, 3))
    with without_remarks():
        pieces = _pieces(opened, found.skipped.add, labels=True)
        for rows, sums, bad in in_threads(measure, pieces, num_workers, threading.Event()):
            sizes.append(np.array([row[:2] for row in rows], np.int32).reshape(-1, 2))
            found.formats.update(row[2] for row in rows)
            found.classes.update(row[3] for row in rows if row[3] is not None)
            found.size += sum(row[4] for row in rows)
            found.images += len(rows)
            total += sum(sums)
            for bad_sample in bad:
                found.skipped.add(bad_sample)
            if progress is not None:
                progress(found.images)
    if sizes:
        found.widths, found.heights = np.concatenate(sizes).T
    if colours and found.images:
        mean, square = total / found.images
        found.mean = tuple(mean.tolist())
        found.std = tuple(np.sqrt(np.maximum(0, square - mean**2)).tolist())
    return found


def _pieces(
    source: Source, damaged: Callable[[BadSample], None], *, labels: bool
) -> Iterator[list[tuple[SampleRef, int | None]]]:
    """The samples of all shards in lists that are worth a thread's while."""
    for shard in source.shards:
        index = shard.index()
        if index.damage is not None:
            damaged(index.damage)
        for start in range(0, len(index), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(index)))
            yield [(index.ref(i), index.label(i) if labels else None) for i in numbers]


def _colour_sums(lazy: LazyImage) -> np.ndarray:
    """The means over an image of red, green and blue, and of their squares: float64 [2, 3]."""
    image = lazy.load((64, 64))
    pixels = np.asarray(image, np.float64) / 255
    pixels = pixels.reshape(-1, 1 if image.mode == "L" else 3)
    return np.stack([pixels.mean(0), (pixels**2).mean(0)]) * np.ones((2, 3))
