"""The memory of in-context segmentation as it passes by: features of patches, with their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.images import Augmentation, MemoryImages, Part
from franca_fast.evaluation.dense.memory.patch_labels import (
    PatchLabels,
    kept_patches,
    nearest_indices,
    patch_class_counts,
    patch_scores,
)
from franca_fast.evaluation.dense.patch_grids import PatchBatch, check_patch_size, patch_grids
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.protocol import Reading


class Block(NamedTuple):
    """Patches of some views; a view is an image in one epoch of augmentation.

    Attributes:
        done: views so far, those before this block included.
        features: [n, d], as the encoder gives them.
        numbers: int64 [n], of the patches; they do not depend on the order of the images.
    """

    done: int
    features: Tensor
    numbers: Tensor


class MemoryStream:
    """Patches of a training set, block by block.

    A patch's number is (rank of its image's name x epochs + epoch) x patches + its place.

    Args:
        encoder: on its device.
        train: images with masks.
        size: side of the square that images become, pixels.
        augmentation: what happens to images; None leaves them as they are.
        epochs: how often each image is taken, augmented differently.
        memory_size: patches in all, of which each view keeps its equal share; None keeps all.
        reading: how.

    Attributes:
        n_views: images x epochs.
        patches: of a view.
        kept: patches of a view that are kept.

    Raises:
        InputError: a memory that has not one patch for each view.
    """

    def __init__(
        self,
        encoder: Encoder,
        train: SegmentedImages,
        size: int,
        augmentation: Augmentation | None,
        epochs: int,
        memory_size: int | None,
        reading: Reading,
    ) -> None:
        self._encoder, self._train, self._size = encoder, train, size
        self._augmentation, self._epochs, self._reading = augmentation, epochs, reading
        self._grid = size // check_patch_size(encoder, size)
        self._ranks = np.empty(len(train), np.int64)
        self._ranks[np.argsort(np.array(train.names, dtype=object), kind="stable")] = np.arange(
            len(train)
        )
        self.n_views, self.patches = len(train) * epochs, self._grid**2
        self.kept = self.patches
        if memory_size is not None:
            self.kept = min(self.patches, memory_size // max(1, self.n_views))
            if not self.kept:
                raise InputError(
                    f"memory_size: {memory_size}; accepted: {self.n_views} or more, a patch for "
                    "each image and epoch"
                )

    def labels(self) -> PatchLabels:
        """Room for the labels of all patches."""
        return PatchLabels(self.n_views, self.patches, self._train.n_classes)

    def blocks(self, seed: int, labels: PatchLabels, first: int = 0) -> Iterator[Block]:
        """The patches, and their labels into `labels`.

        Args:
            seed: of augmentation and of the choice of patches.
            labels: from `labels`.
            first: views that are left out, because an earlier call gave them.
        """
        for epoch in range(first // len(self._train), self._epochs):
            before = epoch * len(self._train)
            skipped = max(0, first - before)
            for batch in self._batches(seed, epoch, skipped):
                before_batch = before + skipped
                skipped += len(batch.names)
                yield self._block(batch, before_batch, epoch, seed, labels)

    def _batches(self, seed: int, epoch: int, skipped: int) -> Iterator[PatchBatch]:
        data, reading = self._train, self._reading
        if self._augmentation is not None:
            # What is drawn anew for each seed and epoch is not worth its place on a disk.
            reading = dataclasses.replace(reading, features_cache=None)
            data = MemoryImages(data, self._ranks.tolist(), self._augmentation, seed, epoch)
        elif reading.features_cache is not None:
            # All of them, since features are kept under the name of the whole set.
            for batch in patch_grids(self._encoder, data, self._size, reading):
                if skipped < len(batch.names):
                    yield PatchBatch(
                        batch.names[skipped:], batch.grids[skipped:], batch.masks[skipped:]
                    )
                skipped = max(0, skipped - len(batch.names))
            return
        if skipped < len(data):
            rest = Part(data, range(skipped, len(data)))
            yield from patch_grids(self._encoder, rest, self._size, reading)

    def _block(
        self, batch: PatchBatch, before: int, epoch: int, seed: int, labels: PatchLabels
    ) -> Block:
        rows, numbers = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for i, mask in enumerate(batch.masks):
            rank = int(self._ranks[before + i - epoch * len(self._train)])
            view = rank * self._epochs + epoch
            counts = self._counts(mask.numpy())
            labels.add(view, counts)
            kept = np.arange(self.patches)
            if self.kept < self.patches:
                noise = patch_noise(seed, rank, epoch, self.patches)
                kept = kept_patches(patch_scores(counts), noise, self.kept)
            rows.append(i * self.patches + kept)
            numbers.append(view * self.patches + kept)
        features = batch.grids.flatten(0, 2)
        if self.kept < self.patches:
            features = features[torch.from_numpy(np.concatenate(rows)).to(features.device)]
        return Block(before + len(rows), features, torch.from_numpy(np.concatenate(numbers)))

    def _counts(self, mask: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels of a view's patches; pixels without a class count as class 0."""
        rows, columns = (nearest_indices(side, self._size) for side in mask.shape)
        square = mask[rows[:, None], columns]
        square[square >= self._train.n_classes] = 0
        return patch_class_counts(square, self._grid, self._train.n_classes)


def patch_noise(seed: int, rank: int, epoch: int, patches: int) -> NDArray[np.float64]:
    """Uniform noise in [0, 1) for the patches of a view, float64 [patches]."""
    counter = np.array([[rank, epoch]])
    return uniforms(seed, Purpose.MEMORY_PATCHES, counter, patches)[0]
