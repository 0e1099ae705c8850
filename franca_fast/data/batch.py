"""One training batch, and the maker that turns references to samples into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from franca_fast.data.accounting import BadSample, ImageAccount
from franca_fast.data.crops import CropBuffer, crop_regions
from franca_fast.data.decoding import (
    BadImage,
    DecodeSettings,
    LazyImage,
    held_in_memory,
    without_remarks,
)
from franca_fast.data.masking import build_mask, sample_masks
from franca_fast.data.photometry import PhotometricParameters, draw_parameters, photometric
from franca_fast.data.samples import OpenFiles, SampleRef, read_sample
from franca_fast.data.settings import CropSettings, MaskSettings
from franca_fast.data.stream import Draw
from franca_fast.errors import InputError


@dataclass
class Batch:
    """The crops and masks of B images.

    Attributes:
        global_crops: float32 [2B, 3, S, S], crop-major: crop 1 of all images, then crop 2.
        local_crops: float32 [L*B, 3, s, s], crop-major; None without local crops.
        masks: bool [2B, n], n patches per global crop; True is hidden from the student.
        mask_indices: int64 [M], where `masks.flatten()` is true.
        mask_weights: float32 [M], 1 / (masked patches of that crop).
        keys: names of the B images.
        skipped: reason -> samples skipped while this batch was made.
        account: what became of the images that were drawn for this batch, and what is known of the
            shards that were opened for it.
    """

    global_crops: Tensor
    local_crops: Tensor | None
    masks: Tensor
    mask_indices: Tensor
    mask_weights: Tensor
    keys: list[str]
    skipped: dict[str, int] = field(default_factory=dict)
    account: ImageAccount = field(default_factory=ImageAccount)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU are faster."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            name: function(value) for name, value in vars(self).items() if torch.is_tensor(value)
        }
        return replace(self, **tensors)


@dataclass
class MadeBatch:
    """What a worker sends back.

    The crops of `batch` are finished when `parameters` is None. Otherwise they are uint8
    [n, S, S, C], and `finish` completes them, on whichever device they then lie.

    Attributes:
        batch: the batch.
        parameters: for the global and the local crops.
        bad: what could not be used, and why.
        unfilled: places of the batch for which no spare was left.
        remarks: what is to be said of images that are used.
    """

    batch: Batch
    parameters: tuple[PhotometricParameters, PhotometricParameters] | None
    bad: list[BadSample]
    unfilled: int
    remarks: list[BadSample] = field(default_factory=list)

    def pin_memory(self) -> MadeBatch:
        """The same with the tensors in page-locked memory (called by torch's DataLoader)."""
        return replace(self, batch=self.batch.pin_memory())

    def finish(self, settings: CropSettings) -> Batch:
        """Applies what is left of the augmentation; returns the batch."""
        if self.parameters is None:
            return self.batch
        for_global, for_local = self.parameters
        local_crops = self.batch.local_crops
        if local_crops is not None:
            local_crops = photometric(local_crops, for_local, settings)
        global_crops = photometric(self.batch.global_crops, for_global, settings)
        return replace(self.batch, global_crops=global_crops, local_crops=local_crops)


@dataclass(frozen=True)
class BatchPlan:
    """Everything about batches that does not change during a run.

    Attributes:
        batch_size: b, images per batch on this rank.
        crops, masking: the settings.
        patch_size: side of a patch, pixels.
        seed: of the run.
        rank, world_size: this rank's share of each batch of world_size * b images.
        decoding: which images are skipped, and how levels are mapped.
        photometric_here: whether the maker also changes colours, blurs and normalises; otherwise
            `MadeBatch.finish` does.

    Raises:
        InputError: a value outside its range, or a crop that is no multiple of the patch.
    """

    batch_size: int
    crops: CropSettings
    masking: MaskSettings
    patch_size: int
    seed: int
    rank: int
    world_size: int
    decoding: DecodeSettings
    photometric_here: bool

    def __post_init__(self) -> None:
        for name in ("batch_size", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: {value!r}; accepted: a whole number from 1 on")
        if not 0 <= self.rank < self.world_size:
            raise InputError(
                f"rank: {self.rank}; accepted: from 0 to world_size - 1 = {self.world_size - 1}"
            )
        self.crops.check_patch_size(self.patch_size)

    @property
    def whole_batch_size(self) -> int:
        """Images per batch on all ranks together."""
        return self.batch_size * self.world_size


class BatchMaker(torch.utils.data.Dataset[MadeBatch]):
    """Makes batches from draws; it has no state, so any worker can make any batch.

    Args:
        plan: what the batches look like.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._files = OpenFiles()
        self._mask = build_mask(plan.masking, plan.crops.global_crops_size // plan.patch_size)

    def __getitem__(self, draw: Draw) -> MadeBatch:
        """Decodes, crops and collates the samples of a draw."""
        buffer = self.buffer()
        with without_remarks():
            keys, bad, unfilled, remarks = self._fill(buffer, draw)
        made = self.collate(buffer, draw.first, draw.numbers, keys, bad, unfilled)
        return replace(made, remarks=remarks)

    def buffer(self) -> CropBuffer:
        """Room for the crops of one batch."""
        return CropBuffer(self._plan.crops, self._plan.batch_size)

    def collate(
        self,
        buffer: CropBuffer,
        first: int,
        numbers: NDArray[np.int64],
        keys: list[str],
        bad: list[BadSample],
        unfilled: int = 0,
    ) -> MadeBatch:
        """Makes the batch of crops that have been cut: adds masks and the drawn colours.

        Args:
            buffer: the crops.
            first: number of samples drawn before the batch, by all ranks.
            numbers: int64 [b], the place of each sample in the sequence.
            keys: names of the images.
            bad: as in `MadeBatch`.
            unfilled: the same.
        """
        plan = self._plan
        masks = sample_masks(
            self._mask,
            plan.masking,
            plan.seed,
            first,
            plan.whole_batch_size,
            plan.rank,
            plan.world_size,
        )
        counts = masks.sum(1, dtype=torch.float32)
        batch = Batch(
            global_crops=torch.from_numpy(buffer.global_crops),
            local_crops=torch.from_numpy(buffer.local_crops) if len(buffer.local_crops) else None,
            masks=masks,
            mask_indices=masks.flatten().nonzero().flatten(),
            mask_weights=(1 / counts)[:, None].expand_as(masks)[masks],
            keys=keys,
        )
        parameters = (
            draw_parameters(plan.crops, plan.seed, numbers, local=False),
            draw_parameters(plan.crops, plan.seed, numbers, local=True),
        )
        made = MadeBatch(batch, parameters, bad, unfilled)
        if plan.photometric_here and not unfilled:
            made = replace(made, batch=made.finish(plan.crops), parameters=None)
        return made

    def _fill(
        self, buffer: CropBuffer, draw: Draw
    ) -> tuple[list[str], list[BadSample], int, list[BadSample]]:
        """Puts the crops of the samples into the buffer; a spare takes the place of a bad one.

        Returns:
            names of the images; the bad ones, without spares, which are counted when their own
            turn comes; places left unfilled; remarks on the others.
        """
        keys = [""] * len(draw.refs)
        bad, remarks = list[BadSample](), list[BadSample]()
        todo = list(enumerate(draw.refs))
        unfilled = attempt = 0
        while todo:
            failed, odd = self.cut(buffer, todo, draw.numbers)
            refs = dict(todo)
            for slot, lazy in odd.items():
                remarks += lazy.remarks(refs[slot].location)
            for slot, ref in todo:
                if slot not in failed:
                    keys[slot] = ref.name
                elif attempt == 0:
                    bad.append(BadSample(ref.location, failed[slot].reason, failed[slot].detail))
            spares = [(slot, draw.spare(slot, attempt)) for slot in sorted(failed)]
            todo = [(slot, spare) for slot, spare in spares if spare is not None]
            unfilled += len(failed) - len(todo)
            attempt += 1
        return keys, bad, unfilled, remarks

    def cut(
        self,
        buffer: CropBuffer,
        samples: Sequence[tuple[int, SampleRef | bytes | Image.Image]],
        numbers: NDArray[np.int64],
    ) -> tuple[dict[int, BadImage], dict[int, LazyImage]]:
        """Reads and crops (slot, sample) pairs.

        Returns:
            the slots that failed, and why; of the others those with remarks.
        """
        opened = list[tuple[int, LazyImage]]()
        failed, odd = dict[int, BadImage](), dict[int, LazyImage]()
        for slot, sample in samples:
            try:
                opened.append((slot, self._open(sample)))
            except BadImage as error:
                failed[slot] = error
        slots = np.array([slot for slot, _ in opened], np.int64)
        sizes = [lazy.size for _, lazy in opened]
        regions = crop_regions(self._plan.crops, self._plan.seed, numbers[slots], sizes)
        for (slot, lazy), boxes, flips in zip(opened, *regions, strict=True):
            try:
                buffer.cut(slot, lazy, boxes, flips)
            except BadImage as error:
                failed[slot] = error
            else:
                odd |= {slot: lazy} if lazy.remark else {}
        return failed, odd

    def _open(self, sample: SampleRef | bytes | Image.Image) -> LazyImage:
        with held_in_memory():
            if not isinstance(sample, SampleRef):
                return LazyImage(sample, self._plan.decoding)
            data = read_sample(sample, self._files)
            return LazyImage(data, self._plan.decoding, sample.name)
