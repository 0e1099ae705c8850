from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.dense import image_grids as module
from franca_fast.evaluation.dense.image_grids import (
    Prepared,
    image_grids,
    padded_to_patches,
    patch_size_of,
)
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.protocol import Reading
from python_tests.evaluation.dense.patch_colours import PatchColours

SIDES = [14, 14, 21, 14, 14, 14, 28]


def prepare(i: int) -> Prepared:
    pixels = torch.randn(3, 14, SIDES[i], generator=torch.Generator().manual_seed(i))
    return Prepared(f"image {i}", pixels, [i], about=f"about {i}")


def found(encoder: PatchColours, reading: Reading) -> list[Tensor]:
    results = list(image_grids(encoder, range(len(SIDES)), prepare, reading))
    assert [item for item, _, _ in results] == list(range(len(SIDES)))
    assert [about for _, about, _ in results] == [f"about {i}" for i in range(len(SIDES))]
    return [grid for _, _, grid in results]


def test_features_are_those_of_each_image_alone() -> None:
    encoder = PatchColours()
    for i, grid in enumerate(found(encoder, Reading())):
        tokens = encoder.forward_features(prepare(i).pixels[None])["x_norm_patchtokens"]
        assert grid.shape == (2, SIDES[i] // 7, 6)
        torch.testing.assert_close(grid, tokens[0].reshape(grid.shape))


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 3), (64, 1)])
def test_batches_and_workers_change_nothing(batch_size: int, num_workers: int) -> None:
    encoder = PatchColours()
    expected = found(PatchColours(), Reading(num_workers=0))
    grids = found(encoder, Reading(batch_size=batch_size, num_workers=num_workers))
    for one, other in zip(grids, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert encoder.seen == len(SIDES) and encoder.largest == min(batch_size, 3)


def test_large_images_go_through_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 2 * 14 * 14)
    encoder = PatchColours()
    found(encoder, Reading())
    assert encoder.largest == 2 and encoder.seen == len(SIDES)


def test_kept_features_are_not_computed_again(tmp_path: Path) -> None:
    reading = Reading(features_cache=tmp_path)
    encoder = PatchColours()
    expected = found(encoder, reading)
    for one, other in zip(found(encoder, reading), expected, strict=True):
        assert torch.equal(one, other)
    assert encoder.seen == len(SIDES)
    # Other weights, and another way to take features from them, are computed anew.
    other_encoder = PatchColours()
    other_encoder.matrix.mul_(2)
    torch.testing.assert_close(found(other_encoder, reading)[0], 2 * expected[0])

    def doubled(encoder: Encoder, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 1, 1, 1)

    results = list(image_grids(encoder, range(2), prepare, reading, doubled))
    assert results[0][2].shape == (1, 1, 1)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    reading = Reading(batch_size=1, features_cache=tmp_path)
    encoder = PatchColours()
    first = image_grids(encoder, range(len(SIDES)), prepare, reading)
    next(first), next(first)
    first.close()
    done = encoder.seen
    found(encoder, reading)
    assert encoder.seen <= done + len(SIDES) - 2


def test_features_that_are_not_finite_name_the_image() -> None:
    encoder = PatchColours()

    def broken(i: int) -> Prepared:
        return prepare(i)._replace(pixels=torch.full((3, 14, 14), torch.nan if i == 1 else 1.0))

    with pytest.raises(InputError, match="not finite for 'image 1'"):
        list(image_grids(encoder, range(3), broken, Reading()))


@pytest.mark.parametrize("centred", [False, True])
def test_padding_makes_whole_patches(centred: bool) -> None:
    pixels = torch.ones(3, 15, 28)
    padded = padded_to_patches(pixels, 14, centred=centred)
    assert padded.shape == (3, 28, 28)
    top = 6 if centred else 0
    assert bool((padded[:, top : top + 15] == 1).all()) and padded.sum() == pixels.sum()


def test_what_is_missing_is_refused() -> None:
    with pytest.raises(InputError, match="no patch_size"):
        patch_size_of(torch.nn.Flatten())
