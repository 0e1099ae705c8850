from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from franca_fast.evaluation.dense.clusters.upsampled_pixels import (
    PixelMoments,
    Pixels,
    labels_at,
    pixel_components,
    upsampling_weights,
)
from python_tests.evaluation.golden import arrays, values


def golden_grids() -> Tensor:
    return arrays()["overcluster.tokens"].view(2, 8, 8, 24)


def golden_moments() -> PixelMoments:
    moments = PixelMoments(100)
    moments.add(golden_grids())
    return moments


def plain_pixels(grids: Tensor, side: int) -> Tensor:
    """Bilinear upsampling, pixel by pixel in float64: [N * side * side, d]."""
    images = []
    for grid in grids.double().numpy():
        h, w, _ = grid.shape
        for y in range(side):
            for x in range(side):
                v, u = max(0.0, (y + 0.5) * h / side - 0.5), max(0.0, (x + 0.5) * w / side - 0.5)
                top, left = int(v), int(u)
                below, right = min(top + 1, h - 1), min(left + 1, w - 1)
                upper = grid[top, left] * (1 - (u - left)) + grid[top, right] * (u - left)
                lower = grid[below, left] * (1 - (u - left)) + grid[below, right] * (u - left)
                images.append(upper * (1 - (v - top)) + lower * (v - top))
    return torch.from_numpy(np.stack(images))


SHAPES = [((2, 3, 5), 7), ((3, 4, 4), 12), ((2, 9, 6), 5), ((2, 1, 3), 4), ((1, 1, 1), 3)]


@pytest.fixture(params=SHAPES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, int]:
    shape, side = request.param
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, 4, generator=generator) * 3 + 2, side


def test_weights_are_those_of_pytorch() -> None:
    for n, side in ((8, 100), (32, 100), (5, 3), (1, 6)):
        line = torch.randn(1, 1, n, dtype=torch.float64)
        expected = F.interpolate(line, size=side, mode="linear", align_corners=False)[0, 0]
        assert torch.allclose(upsampling_weights(n, side) @ line[0, 0], expected, atol=1e-14)


def test_moments_are_those_of_the_pixels(case: tuple[Tensor, int]) -> None:
    grids, side = case
    pixels = plain_pixels(grids, side)
    moments = PixelMoments(side)
    moments.add(grids[:1])
    moments.add(grids[1:])
    assert moments.n_pixels == len(pixels)
    assert torch.allclose(moments.mean, pixels.mean(0), atol=1e-12)
    centred = pixels - pixels.mean(0)
    assert torch.allclose(moments.covariance, centred.T @ centred / len(pixels), atol=1e-12)


def test_pixels_are_upsampled_patches(case: tuple[Tensor, int]) -> None:
    grids, side = case
    expected = plain_pixels(grids, side).float()
    pixels = Pixels(grids, side)
    assert len(pixels) == len(expected) and pixels.per_image == side**2
    assert torch.allclose(pixels.of_images(0, len(grids)), expected, atol=1e-5)
    assert torch.allclose(pixels.rows(torch.arange(len(expected))), expected, atol=1e-5)
    chosen = torch.tensor([len(expected) - 1, 0, len(expected) // 2])
    assert torch.allclose(pixels.rows(chosen), expected[chosen], atol=1e-5)
    last = pixels.of_images(len(grids) - 1, len(grids) + 3)
    assert torch.equal(last, pixels.of_images(0, len(grids))[-(side**2) :])


def test_projected_then_upsampled_is_upsampled_then_projected(case: tuple[Tensor, int]) -> None:
    grids, side = case
    if side == 3:  # one patch: no variance
        return
    moments = PixelMoments(side)
    moments.add(grids)
    components = pixel_components(moments, 3, 2)
    pixels = plain_pixels(grids, side)[:, :3]
    standardised = (pixels - pixels.mean(0)) / (pixels.std(0, correction=0) + 1e-5)
    _, _, right = torch.linalg.svd(standardised, full_matrices=False)
    expected = standardised @ right[:2].T
    found = Pixels(components.project(grids), side).of_images(0, len(grids)).double()
    signs = (found * expected).sum(0).sign()
    assert torch.allclose(found * signs, expected, atol=1e-4)
    assert torch.allclose(components.eigenvalues[:2], expected.square().mean(0), atol=1e-9)
    kept = expected.square().sum() / standardised.square().sum()
    assert components.explained == pytest.approx(kept.item())


def test_golden_masks() -> None:
    masks = arrays()["overcluster.masks"].long()
    found = torch.stack([labels_at(mask, 100) for mask in masks])
    assert torch.equal(found, arrays()["overcluster.masks_100"].long())


def test_golden_standardised_rows() -> None:
    moments = golden_moments()
    mean, std = moments.mean, moments.covariance.diagonal().sqrt()
    assert torch.allclose(mean.float(), arrays()["overcluster.feature_mean"], atol=1e-5)
    assert torch.allclose(std.float(), arrays()["overcluster.feature_std"], atol=1e-5)
    rows = Pixels(golden_grids(), 100).rows(arrays()["overcluster.rows"])
    components = pixel_components(moments, 24, 24)
    standardised = (rows - components.mean) / (components.std + 1e-5)
    assert torch.allclose(
        standardised.float(), arrays()["overcluster.standardised_rows"], atol=3e-5
    )


def test_golden_components() -> None:
    components = pixel_components(
        golden_moments(), 24, values()["overcluster"]["settings"]["pca_dim"]
    )
    scatter = components.eigenvalues * 20_000
    expected = arrays()["overcluster.pca_eigenvalues"].double()
    assert torch.allclose(scatter, expected, rtol=2e-5, atol=2e-2)
    rows = Pixels(components.project(golden_grids()), 100).rows(arrays()["overcluster.rows"])
    theirs = arrays()["overcluster.pca_rows"]
    signs = (rows * theirs).sum(0).sign()
    assert (rows * signs - theirs).abs().max() < 2e-4


def test_images_batches_and_widths() -> None:
    generator = torch.Generator().manual_seed(1)
    grids = torch.randn(6, 4, 4, 8, generator=generator)
    together, alone, backwards = (PixelMoments(10) for _ in range(3))
    together.add(grids)
    narrow = PixelMoments(10)
    narrow.add(grids[..., :5])
    for one in grids.split(1):
        alone.add(one)
    backwards.add(grids.flip(0))
    assert torch.equal(together.covariance, alone.covariance)
    assert torch.allclose(together.covariance, backwards.covariance, atol=1e-14)
    first, second = pixel_components(together, 5, 3), pixel_components(narrow, 5, 3)
    assert torch.allclose(first.weight, second.weight, atol=1e-10)
    assert torch.allclose(first.project(grids), second.project(grids[..., :5]), atol=1e-5)


def test_more_components_than_entries_and_entries_without_variance() -> None:
    grids = torch.randn(2, 3, 3, 4)
    grids[..., 2] = 7.0
    moments = PixelMoments(6)
    moments.add(grids)
    components = pixel_components(moments, 4, 50)
    assert components.weight.shape == (4, 4)
    assert components.project(grids).isfinite().all()
    assert components.explained == pytest.approx(1.0)
