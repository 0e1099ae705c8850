"""A stage for pipelines of the WebDataset library: from samples to batches for pretraining."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import get_worker_info

from franca_fast.data.accounting import SECOND_IMAGE, BadRate, BadSample, ImageAccount
from franca_fast.data.batch import Batch, BatchMaker, BatchPlan
from franca_fast.data.crops import CropBuffer
from franca_fast.data.decoding import (
    MAX_IMAGE_PIXELS,
    BadImage,
    DecodeSettings,
    is_image_name,
    is_readable_name,
    without_remarks,
)
from franca_fast.data.randomness import Purpose, derived_seed
from franca_fast.data.settings import CropSettings, MaskSettings
from franca_fast.errors import InputError

logger = logging.getLogger(__name__)


def multi_crop(
    crops: CropSettings,
    masking: MaskSettings,
    *,
    patch_size: int,
    batch_size: int,
    seed: int = 0,
    max_bad_fraction: float = 0.1,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
) -> Callable[[Iterable[Any]], Iterator[Batch]]:
    """A stage that turns the samples of a WebDataset pipeline into batches of crops and masks.

    For pipelines of one's own: `pipeline.compose(multi_crop(...))`. Batches have the form that
    `build_train_loader` gives, on the CPU; the order of the samples, and the place in it, remain
    the pipeline's. A sample is

    - a dictionary, as from the shards or after `.decode("pil")`: its image is the entry `jpg`
      (or another image extension), else the first one such as `seg.png`; `__key__` is its name;
    - a tuple or list, as from `.to_tuple("jpg", "cls")`: its image is the first entry;
    - an image.

    Images are the bytes of a file, which are decoded as `build_train_loader` does, quicker than by
    `.decode("pil")`, or images of Pillow. The next sample takes the place of one that cannot be
    used. Samples at the end of a pipeline that fill no batch are left out.

    Crops, colours and masks depend on the seed, the rank, how often the stage has begun anew and
    the place in the pipeline; in a worker of a DataLoader also on torch's seed of that worker,
    which differs in each epoch and follows from `torch.manual_seed`.

    Args:
        crops: settings of the augmentation.
        masking: settings of the masks.
        patch_size: side of a patch, pixels.
        batch_size: B, images per batch. The DataLoader must not batch again: `batch_size=None`.
        seed: of crops, colours and masks.
        max_bad_fraction: share of the samples that may be unusable; an error comes above it.
        max_image_pixels: larger images are skipped.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".

    Returns:
        a function from an iterable of samples to an iterator of `Batch`: global_crops float32
        [2B, 3, S, S], local_crops float32 [L*B, 3, s, s], masks bool [2B, patches].

    Raises:
        InputError: wrong arguments; while iterating: a sample of another form, too many bad
            samples, or fewer samples than a batch.

    Example:
        >>> import webdataset as wds
        >>> from franca_fast.data import fashion_mnist_shards
        >>> crops = CropSettings(global_crops_size=28, local_crops_size=14, local_crops_number=4)
        >>> pipeline = (
        ...     wds.WebDataset(fashion_mnist_shards("test"), shardshuffle=False)
        ...     .shuffle(100)
        ...     .to_tuple("png", "cls")
        ...     .compose(multi_crop(crops, MaskSettings(), patch_size=7, batch_size=16))
        ... )
        >>> batch = next(iter(pipeline))
        >>> batch.global_crops.shape, batch.local_crops.shape, batch.masks.shape
        (torch.Size([32, 3, 28, 28]), torch.Size([64, 3, 14, 14]), torch.Size([32, 16]))
    """
    plan = BatchPlan(
        batch_size=batch_size,
        crops=crops,
        masking=masking,
        patch_size=patch_size,
        seed=seed,
        rank=0,
        world_size=1,
        decoding=DecodeSettings(max_image_pixels, levels),
        photometric_here=True,
    )
    return _MultiCrop(plan, BadRate(max_bad_fraction))


class _Sample(NamedTuple):
    """What the stage needs of a sample; the image is None when there is none.

    `others` are the entries with further images, which are left out.
    """

    key: str
    location: str
    image: bytes | Image.Image | None
    others: tuple[str, ...] = ()


class _MultiCrop:
    """The stage; an object, so that it can be sent to workers."""

    def __init__(self, plan: BatchPlan, bad_rate: BadRate) -> None:
        self._plan, self._bad_rate = plan, bad_rate
        self._begun = 0

    def __call__(self, samples: Iterable[Any]) -> Iterator[Batch]:
        maker = BatchMaker(replace(self._plan, seed=self._next_seed()))
        found = (_sample_of(sample, i) for i, sample in enumerate(samples))
        size = self._plan.batch_size
        for first in itertools.count(0, size):
            numbers = np.arange(first, first + size)
            buffer, account = maker.buffer(), ImageAccount()
            keys = self._fill(maker, buffer, found, numbers, account)
            if len(keys) < size:
                if first == 0:
                    raise InputError(
                        f"batch_size: {size}; accepted: at most {len(keys)}, the usable images of "
                        "this pipeline (of this worker's part of it)"
                    )
                if keys:
                    logger.warning("left out %d images at the end, which fill no batch", len(keys))
                return
            made = maker.collate(buffer, first, numbers, keys, [])
            yield replace(made.batch, skipped=dict(account.skipped), account=account)

    def _next_seed(self) -> int:
        from webdataset.utils import pytorch_worker_info

        rank, worker = pytorch_worker_info()[0], get_worker_info()
        parts = (rank, self._begun, 0 if worker is None else worker.seed)
        self._begun += 1
        return derived_seed(self._plan.seed, Purpose.PIPELINE, *parts)

    def _fill(
        self,
        maker: BatchMaker,
        buffer: CropBuffer,
        samples: Iterator[_Sample],
        numbers: NDArray[np.int64],
        account: ImageAccount,
    ) -> list[str]:
        """Puts the crops of the next samples into the buffer; returns the names of the images.

        They are fewer than the batch has when the samples end.
        """
        keys: dict[int, str] = {}
        empty = list(range(len(numbers)))
        while taken := list(zip(empty, samples, strict=False)):
            failed = {slot: BadImage("no image") for slot, s in taken if s.image is None}
            images = [(slot, s.image) for slot, s in taken if s.image is not None]
            with without_remarks():
                also_failed, odd = maker.cut(buffer, images, numbers)
            failed |= also_failed
            bad = [
                BadSample(s.location, failed[slot].reason, failed[slot].detail)
                for slot, s in taken
                if slot in failed
            ]
            places = {slot: s.location for slot, s in taken}
            account.add(bad, [r for slot, lazy in odd.items() for r in lazy.remarks(places[slot])])
            account.used += len(taken) - len(bad)
            account.found += len(taken) + sum(len(s.others) for _, s in taken)
            for _, s in taken:
                for other in s.others:
                    account.left_out.add(BadSample(f"{s.location}.{other}", SECOND_IMAGE))
            self._bad_rate.add(len(taken), bad)
            keys |= {slot: s.key for slot, s in taken if slot not in failed}
            empty = sorted(failed)
        return [keys[slot] for slot in sorted(keys)]


def _preference(name: str) -> tuple[bool, bool]:
    """First images of formats that are read, of these `jpg` before `seg.jpg`."""
    return not is_readable_name(f"image.{name}"), "." in name


def _sample_of(sample: Any, number: int) -> _Sample:
    """Finds the image of a sample of a pipeline.

    Raises:
        InputError: it is in a form that is not known.
    """
    key, url, image, others = f"sample {number}", "", sample, tuple[str, ...]()
    if isinstance(sample, dict):
        key, url = sample.get("__key__", key), sample.get("__url__", "")
        images = [name for name in sample if is_image_name(f"image.{name}")]
        chosen = min(images, key=_preference, default=None)
        image = None if chosen is None else sample[chosen]
        others = tuple(name for name in images if name != chosen)
    elif isinstance(sample, (tuple, list)):
        image = sample[0] if sample else None
    if not isinstance(image, (bytes, Image.Image, NoneType)) or sample is None:
        raise InputError(
            f"sample: its image is {type(image).__name__}; accepted: the bytes of an image file or "
            "a PIL image (.decode('pil')), alone, first in a tuple, or in a dictionary as jpg, png"
        )
    return _Sample(key, f"{url}:{key}" if url else key, image, others)
