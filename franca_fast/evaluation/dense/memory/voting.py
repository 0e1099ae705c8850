"""What patches of test images show, as their neighbours in a memory vote: the work of in-context.

Test images whose patches do not fit the memory at once are taken in groups, each with a pass of
the memory; so a memory of any size, and any number of test images, take a fixed number of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.data.threads import in_order
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.images import Part
from franca_fast.evaluation.dense.memory.patch_labels import PatchLabels, class_map
from franca_fast.evaluation.dense.memory.progress import SearchProgress
from franca_fast.evaluation.dense.memory.search import (
    Neighbours,
    attention_weights,
    bytes_per_query,
    unit_rows,
)
from franca_fast.evaluation.dense.memory.stream import MemoryStream
from franca_fast.evaluation.dense.patch_grids import patch_grids
from franca_fast.evaluation.dense.segmentation_score import Confusion
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.feature_cache import encoder_facts
from franca_fast.evaluation.protocol import Reading

_TILES = 500_000_000  # bytes of the products that a search holds at a time
_COPIES = 3  # of a block of features: as they come, cut to a width, and what is between
_LABELS = 32  # bytes of the labels of a patch of the memory, nearly all of one or two classes


@dataclass(frozen=True)
class Plan:
    """What is computed.

    Attributes:
        dims: widths of the features.
        seeds: a memory for each.
        k: neighbours of a patch.
        temperature: of the votes.
        img_size: side of the images, pixels.
        memory_gb: what queries, neighbours, labels and blocks may take together.
        facts: all settings, by which an interrupted search is known again.
    """

    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    k: int
    temperature: float
    img_size: int
    memory_gb: float
    facts: Mapping[str, Any]


class Voting:
    """The search, and the counts of pixels that it leads to.

    Args:
        encoder: on its device.
        stream: of the memory.
        train: the images that it is made of.
        test: images to segment, with the classes of `train`.
        plan: what is computed.
        width: of the features.
        reading: how images are read.

    Attributes:
        groups: of test images, each with a pass of the memory.

    Raises:
        InputError: `memory_gb` is too little for one image.
    """

    def __init__(
        self,
        encoder: Encoder,
        stream: MemoryStream,
        train: SegmentedImages,
        test: SegmentedImages,
        plan: Plan,
        width: int,
        reading: Reading,
    ) -> None:
        self._encoder, self._stream, self._test = encoder, stream, test
        self._plan, self._reading = plan, reading
        per_image = stream.patches * sum(bytes_per_query(m, plan.k) for m in plan.dims)
        fixed = fixed_bytes(width, stream.patches, stream.n_views, reading.batch_size)
        self.groups = query_groups(len(test), per_image, fixed, plan.memory_gb)
        self._progress = SearchProgress(
            reading.features_cache,
            {
                **(encoder_facts(encoder, reading.precision) if reading.features_cache else {}),
                "train": train.fingerprint(),
                "test": test.fingerprint(),
                "settings": plan.facts,
                "dims": plan.dims,
                "groups": [[rows.start, rows.stop] for rows in self.groups],
            },
        )
        self._confusions = {
            m: [Confusion(test.n_classes, test.ignore) for _ in plan.seeds] for m in plan.dims
        }

    def run(self) -> dict[int, list[Confusion]]:
        """Counts of pixels by true and predicted class: width -> one for each seed."""
        state = self._progress.load() or {}
        for m, of_seeds in self._confusions.items():
            for i, confusion in enumerate(of_seeds):
                confusion.matrix = state.get(f"confusion.{m}.{i}", confusion.matrix).clone()
        group, seed, views = state.get("place", torch.zeros(3, dtype=torch.int64)).tolist()
        for g in range(group, len(self.groups)):
            queries = self._queries(self.groups[g])
            for s in range(seed, len(self._plan.seeds)):
                self._search(g, s, queries, views, state)
                views, state = 0, {}
            seed = 0
        self._progress.clear()
        return self._confusions

    def _queries(self, rows: range) -> dict[int, Tensor]:
        """Unit vectors of the patches of some test images, at each width."""
        patches, found = self._stream.patches, dict[int, Tensor]()
        whole = len(rows) == len(self._test)  # whose features may be kept under its own name
        data = self._test if whole else Part(self._test, rows)
        first = 0
        for batch in patch_grids(self._encoder, data, self._plan.img_size, self._reading):
            features = batch.grids.flatten(0, 2)
            for m in self._plan.dims:
                if m not in found:  # filled in place, so that they are never there twice
                    found[m] = features.new_empty(len(rows) * patches, m)
                found[m][first : first + len(features)] = unit_rows(features, m)
            first += len(features)
        return found

    def _search(
        self, g: int, s: int, queries: Mapping[int, Tensor], views: int, state: Mapping[str, Tensor]
    ) -> None:
        """A pass of the memory for a group of queries and a seed, from some view on."""
        labels = self._stream.labels()
        neighbours = {m: Neighbours(queries[m], self._plan.k) for m in self._plan.dims}
        if views:
            labels.restore(_below("labels", state))
            for m, found in neighbours.items():
                found.restore(_below(f"neighbours.{m}", state))

        def reached(done: int) -> dict[str, Tensor]:
            tensors = {f"labels.{name}": t for name, t in labels.state().items()}
            for m, found in neighbours.items():
                tensors |= {f"neighbours.{m}.{name}": t for name, t in found.state().items()}
            return tensors | self._counted(g, s, done)

        for block in self._stream.blocks(self._plan.seeds[s], labels, views):
            for m, found in neighbours.items():
                found.add(unit_rows(block.features, m), block.numbers)
            views = block.done
            self._progress.save_when_due(lambda: reached(views))  # noqa: B023
        self._count(s, self.groups[g], labels, neighbours)
        self._progress.save_when_due(lambda: self._counted(g, s + 1, 0))

    def _counted(self, g: int, s: int, views: int) -> dict[str, Tensor]:
        """Where the search is, and all counts so far."""
        tensors = {"place": torch.tensor([g, s, views])}
        for m, of_seeds in self._confusions.items():
            for i, confusion in enumerate(of_seeds):
                tensors[f"confusion.{m}.{i}"] = confusion.matrix
        return tensors

    def _count(
        self, s: int, rows: range, labels: PatchLabels, neighbours: Mapping[int, Neighbours]
    ) -> None:
        """Counts the pixels of a group's images."""
        patches = self._stream.patches
        grid = math.isqrt(patches)
        for i, mask in enumerate(self._masks(rows)):
            for m, found in neighbours.items():
                place = slice(i * patches, (i + 1) * patches)
                weights = attention_weights(found.similarity[place].cpu(), self._plan.temperature)
                soft = labels.mixed(weights, found.numbers[place].cpu())
                predicted = class_map(soft.view(grid, grid, -1), (mask.shape[0], mask.shape[1]))
                self._confusions[m][s].add(mask, predicted)

    def _masks(self, rows: range) -> Iterator[Tensor]:
        workers = self._reading.num_workers
        masks = in_order(lambda i: self._test.load(i)[1], rows, workers, 2 * workers)
        return map(torch.from_numpy, masks)


def fixed_bytes(width: int, patches: int, n_views: int, batch_size: int) -> int:
    """What a search takes besides queries and their neighbours.

    Args:
        width: of the features.
        patches: of a view.
        n_views: of the memory.
        batch_size: views at once.

    Example:
        >>> fixed_bytes(768, 1369, 10582, 64) // 10**6
        1771
    """
    return _TILES + patches * (_COPIES * 4 * width * batch_size + _LABELS * n_views)


def query_groups(n_images: int, per_image: int, fixed: int, memory_gb: float) -> list[range]:
    """Groups of test images, as equal as can be, whose queries fit.

    Args:
        n_images: of the test set.
        per_image: bytes of the queries and neighbours of an image.
        fixed: bytes that are needed besides.
        memory_gb: what there is, in 10^9 bytes.

    Raises:
        InputError: not one image fits.

    Example:
        >>> query_groups(5, 10**9, 10**9, 3.5)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    fit = int((memory_gb * 1e9 - fixed) // per_image)
    if fit < 1:
        least = (fixed + per_image) / 1e9
        raise InputError(
            f"memory_gb: {memory_gb}; accepted: {least:.2f} or more, or a smaller batch_size"
        )
    n_groups = -(-n_images // fit)
    size = -(-n_images // n_groups)
    return [range(first, min(first + size, n_images)) for first in range(0, n_images, size)]


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a word and a point, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in state.items() if name.startswith(start)}
