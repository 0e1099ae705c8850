"""Labelled images by number, in any order: what heads are trained on."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import count
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from franca_fast.data.accounting import BadSample, ImageAccount
from franca_fast.data.classes import join_labels
from franca_fast.data.crops import crop_regions
from franca_fast.data.decoding import (
    BadImage,
    DecodeSettings,
    LazyImage,
    held_in_memory,
    without_remarks,
)
from franca_fast.data.randomness import Purpose, permutation
from franca_fast.data.samples import OpenFiles, SampleRef, read_sample
from franca_fast.data.settings import CropSettings
from franca_fast.data.sources import open_source
from franca_fast.data.threads import in_order
from franca_fast.data.transform import normalised
from franca_fast.errors import InputError
from franca_fast.spelling import spell

_Prepared = TypeVar("_Prepared")


class NumberedImages:
    """Images of a source with a number each, and their labels, which are read at once.

    Args:
        source: one or several, as `open_source` takes them. Compressed shards are held in memory.
        decoding: which images are skipped, and how levels are mapped.

    Attributes:
        labels: int64 [n], -1 where an image has none.
        class_names: of the labels 0, 1, ...; empty where labels are numbers without names.
        account: what became of the images; each counts when it is first read.

    Raises:
        InputError: nothing at a path, or no images there.

    Example:
        >>> images = NumberedImages("FashionMNIST:split=TEST")
        >>> sizes = images.prepared([5, 5, 0], lambda place, image: image.size)
        >>> len(images), list(sizes)
        (1000, [(5, (28, 28)), (5, (28, 28)), (0, (28, 28))])
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        decoding: DecodeSettings | None = None,
    ) -> None:
        opened = open_source(source, max_missing_fraction=1)
        self.account = ImageAccount()
        self._decoding = decoding or DecodeSettings()
        self._indexes = [shard.index() for shard in opened.shards]
        for index in self._indexes:
            self.account.open(index.opened)
        self._ends = np.cumsum([len(index) for index in self._indexes])
        self._seen: set[int] = set()
        remarks = list[BadSample]()
        files = OpenFiles(1)
        try:
            labels = [
                index.label(i, remarks, files) for index in self._indexes for i in range(len(index))
            ]
        finally:
            files.close()
        self.account.add((), remarks)
        self.labels, self.class_names = join_labels(labels, opened.class_names)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def ref(self, i: int) -> SampleRef:
        """Where an image lies."""
        shard = int(np.searchsorted(self._ends, i, side="right"))
        index = self._indexes[shard]
        return index.ref(i - int(self._ends[shard]) + len(index))

    def prepared(
        self,
        numbers: Iterable[int],
        prepare: Callable[[int, LazyImage], _Prepared],
        num_workers: int = 0,
        ahead: int = 0,
    ) -> Generator[tuple[int, _Prepared], None, None]:
        """What a function makes of images, in the order wanted.

        Images that cannot be used are left out, and counted when they are first met.

        Args:
            numbers: of the images; may be without end, and name one several times.
            prepare: of an image's place among `numbers` and the image, whose pixels are not decoded
                yet; called in threads.
            num_workers: threads that read and prepare images; 0 for none.
            ahead: images to be prepared before they are asked for.

        Yields:
            number of the image, and what was made of it.

        Raises:
            InputError: none can be used.
        """

        def work(item: tuple[int, int]) -> tuple[int, _Prepared | None, list[BadSample]]:
            place, i = item
            ref = self.ref(i)
            try:
                with held_in_memory():
                    lazy = LazyImage(read_sample(ref), self._decoding, ref.name)
                    result = prepare(place, lazy)
            except BadImage as error:
                return i, None, [BadSample(ref.location, error.reason, error.detail)]
            return i, result, lazy.remarks(ref.location)

        lost = 0
        with without_remarks():
            for i, result, said in in_order(work, enumerate(numbers), num_workers, ahead):
                self._count(i, result is not None, said)
                lost = 0 if result is not None else lost + 1
                if result is not None:
                    yield i, result
                # Two orders one after the other may end and begin with the same bad images.
                elif lost >= len(self) * (2 if self.account.used else 1):
                    raise InputError(
                        f"no readable image, such as '{spell(self.ref(i).location)}': "
                        f"{self.account.skipped.summary()}"
                    )

    def _count(self, i: int, is_used: bool, said: list[BadSample]) -> None:
        if i in self._seen:  # in later passes nothing is counted again
            return
        self._seen.add(i)
        self.account.used += is_used
        self.account.add(*(((), said) if is_used else (said, ())))


def shuffled_without_end(n: int, seed: int) -> Iterator[int]:
    """The numbers 0..n-1 in a random order, then in another one, and so on.

    Example:
        >>> numbers = shuffled_without_end(3, seed=0)
        >>> sorted(next(numbers) for _ in range(3)), sorted(next(numbers) for _ in range(3))
        ([0, 1, 2], [0, 1, 2])
    """
    for epoch in count():
        yield from permutation(seed, Purpose.SAMPLE_ORDER, (epoch,), n).tolist()


def random_resized_crop(
    img_size: int, scale: tuple[float, float], seed: int
) -> Callable[[int, LazyImage], Tensor]:
    """The usual transform for training a classifier: a random crop, resized, and a random flip.

    The crop is the first global one of `crop_regions`: its area is uniform in the scale, its
    aspect log-uniform from 3/4 to 4/3; it is not rounded to whole pixels. It depends on the seed
    and the image's place in the sequence alone.

    Args:
        img_size: side of the result, pixels.
        scale: smallest and largest share of the image's area.
        seed: of the draws.

    Returns:
        for `NumberedImages.prepared`: from a place and an image to float32 [3, S, S], bicubic and
        normalised.

    Example:
        >>> crop = random_resized_crop(8, (0.08, 1.0), seed=0)
        >>> crop(0, LazyImage(Image.new("RGB", (20, 30)))).shape
        torch.Size([3, 8, 8])
    """
    settings = CropSettings(
        global_crops_size=img_size, global_crops_scale=scale, local_crops_number=0
    )

    def prepare(place: int, lazy: LazyImage) -> Tensor:
        regions = crop_regions(settings, seed, np.array([place]), [lazy.size])
        box, size = regions.boxes[0, 0], np.array(lazy.size * 2, np.float64)
        # A JPEG need not be decoded larger than its crop is sampled.
        finest = max(img_size / (box[2] - box[0]), img_size / (box[3] - box[1]))
        image = rgb(lazy.load((lazy.size[0] * finest, lazy.size[1] * finest)))
        decoded = np.array(image.size * 2)
        place_in = np.clip(box / size * decoded, 0, decoded)  # rounding must not leave the image
        left, top, right, bottom = place_in.tolist()
        piece = image.resize(
            (img_size, img_size), Image.Resampling.BICUBIC, (left, top, right, bottom)
        )
        if regions.flips[0, 0]:
            piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return normalised(piece)

    return prepare


def rgb(image: Image.Image) -> Image.Image:
    """The image in colours, as it is where it has them.

    Example:
        >>> rgb(Image.new("L", (1, 1))).mode
        'RGB'
    """
    return image if image.mode == "RGB" else image.convert("RGB")
