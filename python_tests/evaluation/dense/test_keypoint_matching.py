from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from franca_fast.evaluation.dense.keypoint_matching import (
    Geometry,
    keypoint_errors,
    matched_cells,
)
from python_tests.evaluation.golden import arrays, values

GOLDEN = values()["keypoints"]


def golden_pair(i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features [h, w, d] and positions [n, 2] in image widths, of source and target."""
    source, target = arrays()["keypoints.features"][i].movedim(1, -1)
    points = arrays()["keypoints.keypoints"][i][..., :2].float() / GOLDEN["settings"]["image_size"]
    return source, target, points[0], points[1]


def test_golden_cells_errors_and_recall() -> None:
    size, cells = GOLDEN["settings"]["image_size"], GOLDEN["settings"]["grid"]
    geometry = Geometry(size, cells, size // cells)
    errors = []
    for i, expected in enumerate(GOLDEN["errors"]):
        source, target, positions, truth = golden_pair(i)
        found = matched_cells(source, target, positions, geometry)
        assert torch.equal(found, arrays()["keypoints.predicted"][i])
        both = torch.tensor(GOLDEN["visible_in_both"][i])
        visible = arrays()["keypoints.keypoints"][i][..., 2].prod(0).nonzero()[:, 0]
        assert torch.equal(visible, both)
        scale = GOLDEN["threshold_scale"][i]
        of_pair = keypoint_errors(geometry.positions(found[both]), truth[both], scale)
        torch.testing.assert_close(of_pair, torch.tensor(expected).double(), atol=1e-6, rtol=1e-6)
        errors.append(of_pair)
    share = (torch.cat(errors) < GOLDEN["settings"]["threshold"]).double().mean()
    assert 100 * share == pytest.approx(GOLDEN["recall_at_0.10"])


def plain_sample(grid: Tensor, x: float, y: float) -> list[float]:
    """Between the four nearest cells, in cells; what lies beyond the border is the border."""
    height, width = grid.shape[:2]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - left, y - top
    result = []
    for c in range(grid.shape[2]):
        upper = (1 - u) * grid[top, left, c] + u * grid[top, left + 1, c]
        lower = (1 - u) * grid[top + 1, left, c] + u * grid[top + 1, left + 1, c]
        result.append(float((1 - v) * upper + v * lower))
    return result


@pytest.mark.parametrize(("img_size", "cells", "patch"), [(20, 5, 4), (17, 5, 4), (10, 2, 7)])
def test_features_are_sampled_where_the_convention_says(
    img_size: int, cells: int, patch: int
) -> None:
    grid = torch.randn(cells, cells, 3, dtype=torch.float64)
    positions = torch.rand(9, 2, dtype=torch.float64)
    padding = (cells * patch - img_size) // 2
    corners = Geometry(img_size, cells, patch).sample(grid, positions)
    centres = Geometry(img_size, cells, patch, centred=True).sample(grid, positions)
    for i, (x, y) in enumerate(positions.tolist()):
        expected = plain_sample(grid, x * (cells - 1), y * (cells - 1))
        assert corners[i].tolist() == pytest.approx(expected)
        in_cells = [(at * img_size + padding) / patch - 0.5 for at in (x, y)]
        assert centres[i].tolist() == pytest.approx(plain_sample(grid, *in_cells))


@pytest.mark.parametrize(("img_size", "cells", "patch"), [(20, 5, 4), (17, 5, 4), (10, 2, 7)])
def test_centred_answers_are_right_where_images_are_the_same(
    img_size: int, cells: int, patch: int
) -> None:
    """At the centre of each patch the best patch is itself, without any error."""
    grid = torch.eye(cells * cells).reshape(cells, cells, -1)
    geometry = Geometry(img_size, cells, patch, centred=True)
    every = torch.cartesian_prod(torch.arange(cells), torch.arange(cells))
    positions = geometry.positions(every)
    found = matched_cells(grid, grid, positions, geometry)
    assert torch.equal(found, every)
    pixels = positions * img_size + geometry.padding
    torch.testing.assert_close(pixels, (every.double() + 0.5) * patch)


def test_matches_equal_loops_in_float64() -> None:
    source, target = torch.randn(4, 4, 6), torch.randn(4, 4, 6)
    positions = torch.rand(7, 2)
    geometry = Geometry(16, 4, 4)
    unit = [
        grid.double() / grid.double().pow(2).sum(-1, keepdim=True).sqrt()
        for grid in (source, target)
    ]
    found = matched_cells(source, target, positions, geometry)
    for i, (x, y) in enumerate(positions.tolist()):
        feature = plain_sample(unit[0], x * 3, y * 3)
        products = {
            (u, v): sum(a * float(b) for a, b in zip(feature, unit[1][v, u], strict=True))
            for v in range(4)
            for u in range(4)
        }
        assert tuple(found[i].tolist()) == max(products, key=lambda cell: products[cell])
    scaled = matched_cells(source * 5, target * 0.1, positions, geometry)
    assert torch.equal(scaled, found)


def test_of_equal_patches_the_first_wins() -> None:
    grid = torch.ones(3, 3, 2)
    found = matched_cells(grid, grid, torch.tensor([[0.9, 0.9]]), Geometry(3, 3, 1))
    assert found.tolist() == [[0, 0]]


def test_errors_are_distances_over_the_scale() -> None:
    found, truth = torch.rand(5, 2), torch.rand(5, 2)
    for error, a, b in zip(keypoint_errors(found, truth, 0.3), found, truth, strict=True):
        assert float(error) == pytest.approx(math.dist(a.tolist(), b.tolist()) / 0.3)
