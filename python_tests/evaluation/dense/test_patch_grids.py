from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from franca_fast.data import SegmentedImages, open_segmentation
from franca_fast.data.settings import CropSettings
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.patch_grids import PatchBatch, patch_grids, square
from franca_fast.evaluation.protocol import Reading
from franca_fast.models import VisionTransformer
from python_tests.data.segmentation_files import write_folder


@pytest.fixture
def data(tmp_path: Path) -> SegmentedImages:
    sizes = [(5, 9), (8, 8), (30, 4), (12, 13), (28, 28)]
    masks = {f"{i}": np.full(size, i, np.uint8) for i, size in enumerate(sizes)}
    return open_segmentation(write_folder(tmp_path / "data", masks))


def together(batches: list[PatchBatch]) -> tuple[list[str], Tensor, list[Tensor]]:
    names = [name for batch in batches for name in batch.names]
    grids = torch.cat([batch.grids for batch in batches])
    return names, grids, [mask for batch in batches for mask in batch.masks]


def test_features_names_and_masks(model: VisionTransformer, data: SegmentedImages) -> None:
    names, grids, masks = together(list(patch_grids(model, data, 28, Reading(batch_size=2))))
    assert names == data.names and grids.shape == (5, 4, 4, 32)
    assert [mask.shape for mask in masks] == [(5, 9), (8, 8), (30, 4), (12, 13), (28, 28)]
    assert [int(mask.max()) for mask in masks] == list(range(5))
    images = torch.stack([square(data.load(i)[0], 28) for i in range(5)])
    with torch.no_grad():
        own = model.eval().forward_features(images)["x_norm_patchtokens"]
    assert torch.allclose(grids.reshape(5, 16, 32), own, atol=1e-5)


def test_the_square_is_pillows() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 5, 3), np.uint8))
    resized = np.asarray(image.resize((14, 14), Image.Resampling.BICUBIC), np.float64) / 255
    expected = (resized - CropSettings.mean) / CropSettings.std
    assert np.abs(square(image, 14).permute(1, 2, 0).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("reading", [Reading(5, 0), Reading(1, 2), Reading(3, 4)])
def test_batches_and_threads_change_nothing(
    model: VisionTransformer, data: SegmentedImages, reading: Reading
) -> None:
    _, grids, _ = together(list(patch_grids(model, data, 28, Reading(2, 1))))
    names, others, _ = together(list(patch_grids(model, data, 28, reading)))
    assert names == data.names and torch.allclose(grids, others, atol=1e-5)


def test_gradients_are_the_callers_own_between_batches(
    model: VisionTransformer, data: SegmentedImages
) -> None:
    for batch in patch_grids(model.train(), data, 28, Reading(2)):
        assert torch.is_grad_enabled() and model.training and not batch.grids.requires_grad


class Counting(VisionTransformer):
    calls = 0

    def forward_features(self, x, masks=None, patches=None):  # type: ignore[no-untyped-def]
        self.calls += len(x)
        return super().forward_features(x, masks, patches)


def test_features_are_kept_and_an_interrupted_pass_goes_on(
    data: SegmentedImages, tmp_path: Path
) -> None:
    model = Counting(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    names, grids, masks = together(list(patch_grids(model, data, 28, Reading(2))))
    reading = Reading(2, features_cache=tmp_path / "cache")
    first = patch_grids(model, data, 28, reading)
    next(first)
    next(first)
    first.close()
    model.calls = 0
    for computed in (1, 0):  # images 0 to 3 are kept
        again = together(list(patch_grids(model, data, 28, reading)))
        assert again[0] == names and torch.allclose(again[1], grids, atol=1e-5)
        assert all(map(torch.equal, again[2], masks))
        assert model.calls == computed
        model.calls = 0


def test_other_weights_and_sizes_are_other_features(
    model: VisionTransformer, data: SegmentedImages, tmp_path: Path
) -> None:
    reading = Reading(features_cache=tmp_path / "cache")
    _, grids, _ = together(list(patch_grids(model, data, 28, reading)))
    assert together(list(patch_grids(model, data, 14, reading)))[1].shape == (5, 2, 2, 32)
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(2)
    assert not torch.allclose(together(list(patch_grids(model, data, 28, reading)))[1], grids)


def test_what_is_refused(model: VisionTransformer, data: SegmentedImages) -> None:
    with pytest.raises(InputError, match="img_size: 30; accepted"):
        next(patch_grids(model, data, 30, Reading()))
    with pytest.raises(InputError, match="encoder: no patch tokens"):
        next(patch_grids(torch.nn.Flatten(), data, 28, Reading()))
    with torch.no_grad():
        model.patch_embed.proj.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="features: not finite for '0'"):
        next(patch_grids(model, data, 28, Reading()))
