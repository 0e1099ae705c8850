from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory import stream as memory_stream
from franca_fast.evaluation.dense.memory.images import Augmentation
from franca_fast.evaluation.dense.memory.search import unit_rows
from franca_fast.evaluation.dense.memory.stream import MemoryStream, patch_noise
from franca_fast.evaluation.protocol import Reading
from python_tests.evaluation.dense.in_context_sets import KnownEncoder, KnownImages
from python_tests.evaluation.golden import arrays, values


def golden_stream(
    memory_size: int | None, order: Sequence[int] | None = None, **reading: Any
) -> MemoryStream:
    masks = list(arrays()["hbird.memory_masks"].numpy().astype(np.int64))
    images = KnownImages(masks, 0, 4, order=order)
    encoder = KnownEncoder(arrays()["hbird.memory_features"], 14)
    return MemoryStream(encoder, images, 84, None, 1, memory_size, Reading(**reading))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_unbounded_memory_is_that_of_open_hummingbird(batch_size: int) -> None:
    stream = golden_stream(None, batch_size=batch_size)
    assert (stream.kept, stream.n_views, stream.patches) == (36, 6, 36)
    labels = stream.labels()
    blocks = list(stream.blocks(0, labels))
    assert [block.done for block in blocks][-1] == 6
    numbers = torch.cat([block.numbers for block in blocks])
    assert torch.equal(numbers, torch.arange(216))
    features = unit_rows(torch.cat([block.features for block in blocks]))
    expected = arrays()["hbird.unbounded.memory_features"]
    assert (features - expected).abs().max() < 2e-7
    kept = labels.mixed(torch.ones(216, 1, dtype=torch.float64), numbers[:, None])
    assert (kept - arrays()["hbird.unbounded.memory_labels"]).abs().max() < 1e-7


def test_the_bounded_memory_is_that_of_open_hummingbird(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = arrays()["hbird.bounded.noise"].numpy()
    monkeypatch.setattr(memory_stream, "patch_noise", lambda seed, rank, *_: noise[rank])
    stream = golden_stream(values()["hbird"]["settings"]["memory_size"], batch_size=4)
    assert stream.kept == values()["hbird"]["settings"]["patches_per_image"]
    labels = stream.labels()
    blocks = list(stream.blocks(0, labels))
    numbers = torch.cat([block.numbers for block in blocks])
    expected = torch.arange(6)[:, None] * 36 + arrays()["hbird.bounded.indices"]
    assert torch.equal(numbers, expected.flatten())
    features = unit_rows(torch.cat([block.features for block in blocks]))
    assert (features - arrays()["hbird.bounded.memory_features"]).abs().max() < 2e-7
    kept = labels.mixed(torch.ones(60, 1, dtype=torch.float64), numbers[:, None])
    assert (kept - arrays()["hbird.bounded.memory_labels"]).abs().max() < 1e-7


def all_of(stream: MemoryStream, seed: int = 0, first: int = 0) -> dict[int, list[float]]:
    """Number of a patch -> its features."""
    found = dict[int, list[float]]()
    for block in stream.blocks(seed, stream.labels(), first):
        for number, row in zip(block.numbers.tolist(), block.features.tolist(), strict=True):
            assert number not in found
            found[number] = row
    return found


def test_numbers_and_choice_do_not_depend_on_the_order_of_images() -> None:
    straight = all_of(golden_stream(63))
    assert len(straight) == 60
    assert all_of(golden_stream(63, [4, 0, 5, 2, 1, 3], batch_size=4)) == straight
    assert all_of(golden_stream(63), seed=1) != straight


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("first", [0, 1, 4, 5, 6])
def test_a_stream_goes_on_from_any_view(first: int, cache: bool, tmp_path: Path) -> None:
    reading = {"batch_size": 4, "features_cache": tmp_path if cache else None}
    whole = all_of(golden_stream(63, **reading))
    rest = all_of(golden_stream(63, **reading), first=first)
    assert rest == {number: row for number, row in whole.items() if number >= 36 * first}


@pytest.mark.parametrize("first", [0, 2, 3, 5])
def test_epochs_are_different_views_of_all_images(first: int, tmp_path: Path) -> None:
    masks = [np.arange(28 * 28).reshape(28, 28) % 5] * 3
    stream = MemoryStream(
        KnownEncoder(torch.randn(3, 4, 6), 14),
        KnownImages(masks, 0, 5),
        28,
        Augmentation(28),
        2,
        None,
        Reading(batch_size=2, features_cache=tmp_path),
    )
    assert stream.n_views == 6
    labels = stream.labels()
    done, seen = first, set[int]()
    for block in stream.blocks(0, labels, first):
        assert block.done > done
        done = block.done
        seen |= set((block.numbers // 4).tolist())
    views = [2 * image + epoch for epoch in range(2) for image in range(3)]
    assert seen == set(views[first:]) and done == 6
    everything = labels.mixed(
        torch.ones(4 * len(seen), 1).double(),
        torch.cat([torch.arange(4) + 4 * view for view in sorted(seen)])[:, None],
    )
    assert torch.allclose(everything.sum(1), torch.ones(4 * len(seen)).double())
    assert list(tmp_path.rglob("*.f32")) == []  # augmented features are not kept


def test_pixels_without_a_class_count_as_class_0() -> None:
    mask = np.full((14, 14), 255)
    mask[:7] = 2
    stream = MemoryStream(
        KnownEncoder(torch.ones(1, 1, 3), 14), KnownImages([mask], 0, 3), 14, None, 1, None,
        Reading(),
    )  # fmt: skip
    labels = stream.labels()
    list(stream.blocks(0, labels))
    assert labels.mixed(torch.ones(1, 1).double(), torch.zeros(1, 1).long()).tolist() == [
        [0.5, 0, 0.5]
    ]


def test_masks_of_other_sizes_are_squashed_with_their_images() -> None:
    mask = np.zeros((50, 20), np.int64)
    mask[25:, 10:] = 1
    stream = MemoryStream(
        KnownEncoder(torch.ones(1, 4, 3), 14), KnownImages([mask], 0, 2), 28, None, 1, None,
        Reading(),
    )  # fmt: skip
    labels = stream.labels()
    list(stream.blocks(0, labels))
    shown = labels.mixed(torch.ones(4, 1).double(), torch.arange(4)[:, None])
    assert shown.tolist() == [[1, 0], [1, 0], [1, 0], [0, 1]]


def test_a_memory_without_a_patch_for_each_view_is_refused() -> None:
    with pytest.raises(InputError, match="memory_size: 5; accepted: 6 or more"):
        golden_stream(5)
    assert golden_stream(10_000).kept == 36


def test_noise_is_uniform_and_differs() -> None:
    noise = patch_noise(0, 3, 0, 4000)
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.02
    for other in ((1, 3, 0), (0, 4, 0), (0, 3, 1)):
        assert abs(np.corrcoef(noise, patch_noise(*other, 4000))[0, 1]) < 0.06
