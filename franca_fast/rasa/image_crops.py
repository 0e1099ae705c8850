"""Square crops of images by number, in any order: what positions are fitted and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from franca_fast.data import CropSettings, eval_transform, open_source
from franca_fast.data.accounting import BadSample, ImageAccount
from franca_fast.data.crops import crop_regions
from franca_fast.data.decoding import (
    BadImage,
    DecodeSettings,
    LazyImage,
    held_in_memory,
    without_remarks,
)
from franca_fast.data.samples import read_sample
from franca_fast.data.threads import in_order
from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.features import Source

CROPS = ("random", "center")
# The number, the pixels and what is to be said of them, or None and why there are none.
_Prepared = tuple[int, Tensor | None, list[BadSample]]
# As the released code crops, colours aside. The flips of the three crops that are drawn for an
# image stand for its mirror images and its exchange of rows and columns.
_RANDOM = CropSettings(global_crops_scale=(0.25, 1.0), local_crops_number=1)


class ImageCrops:
    """One square crop of every image of a source.

    "random" cuts a quarter to all of the image's area at a random place, mirrored and turned at
    random, so that what lies where in the photographs says little of a patch's position. "center"
    is what evaluations use. The crop of an image depends on the seed and its number alone.

    Args:
        source: image files, folders or shards. Compressed shards are held in memory.
        size: side of the crops, pixels.
        kind: "random" or "center".
        seed: of the random crops.
        num_workers: threads that prepare images.
        decoding: which images are skipped, and how levels are mapped.

    Attributes:
        account: what became of the images of the source; one counts when it is first cut.

    Raises:
        InputError: unknown kind, nothing at a path, or no images there.

    Example:
        >>> crops = ImageCrops("FashionMNIST:split=TEST", 28, "random")
        >>> numbers, images = next(crops.batches(range(5), 4))
        >>> len(crops), numbers, images.shape
        (1000, [0, 1, 2, 3], torch.Size([4, 3, 28, 28]))
    """

    def __init__(
        self,
        source: Source,
        size: int,
        kind: str = "random",
        seed: int = 0,
        num_workers: int = 2,
        decoding: DecodeSettings | None = None,
    ) -> None:
        check_crops(kind)
        opened = open_source(source, max_missing_fraction=1)
        self.account = ImageAccount()
        self._indexes = [shard.index() for shard in opened.shards]
        for index in self._indexes:
            self.account.open(index.opened)
        self._ends = np.cumsum([len(index) for index in self._indexes])
        self._size, self._kind, self._seed = size, kind, seed
        self._decoding = decoding or DecodeSettings()
        self._workers = num_workers
        self._transform = eval_transform(size)
        self._seen: set[int] = set()
        self._unreadable = 0

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def n_unreadable(self) -> int:
        """Images that turned out to be unreadable so far."""
        return self._unreadable

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[tuple[list[int], Tensor]]:
        """Prepares images, one batch ahead; those that cannot be read are left out and counted.

        Args:
            numbers: of the images, in the order wanted.
            size: images a batch; fewer where some cannot be read.

        Yields:
            numbers of the images, and float32 [b, 3, S, S], normalised; b may not be 0.
        """
        with without_remarks():
            prepared = in_order(self._prepare, map(int, numbers), self._workers, size)
            for start in range(0, len(numbers), size):
                yield from self._finish(list(islice(prepared, min(size, len(numbers) - start))))

    def _finish(self, part: list[_Prepared]) -> Iterator[tuple[list[int], Tensor]]:
        good: list[int] = []
        images: list[Tensor] = []
        for i, pixels, said in part:
            if i not in self._seen:  # in later passes nothing is counted again
                self._seen.add(i)
                self.account.used += pixels is not None
                self.account.add(*((said, ()) if pixels is None else ((), said)))
                self._unreadable += pixels is None
            if pixels is not None:
                good.append(i)
                images.append(pixels)
        if good:
            yield good, torch.stack(images)

    def _prepare(self, i: int) -> _Prepared:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        index = self._indexes[shard]
        ref = index.ref(i - int(self._ends[shard]) + len(index))
        try:
            with held_in_memory():
                lazy = LazyImage(read_sample(ref), self._decoding, ref.name)
                image = lazy.load()
                pixels = self._transform(self._cut(i, image) if self._kind == "random" else image)
        except BadImage as error:
            return i, None, [BadSample(ref.location, error.reason, error.detail)]
        return i, pixels, lazy.remarks(ref.location)

    def _cut(self, i: int, image: Image.Image) -> Image.Image:
        regions = crop_regions(_RANDOM, self._seed, np.array([i]), [image.size])
        box = tuple(np.clip(regions.boxes[0, 0], 0, image.size * 2).tolist())
        piece = image.resize((self._size, self._size), Image.Resampling.BICUBIC, box=box)
        turns = (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
        )
        for turn, chosen in zip(turns, regions.flips[0].tolist(), strict=True):
            if chosen:
                piece = piece.transpose(turn)
        return piece


def check_crops(kind: str) -> None:
    """Refuses a kind of crops that does not exist.

    Raises:
        InputError: with the nearest name.
    """
    if kind not in CROPS:
        raise InputError(
            f"crops: '{kind}'{did_you_mean(kind, CROPS)}; accepted: {', '.join(CROPS)}"
        )
