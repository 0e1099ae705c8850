from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.data.transform import normalised
from franca_fast.evaluation.dense.probe.crops import (
    NOT_COUNTED,
    CropSize,
    Targets,
    nearest,
    random_crop,
    scaled_size,
)

SIZES = [(64, 48), (48, 64), (9, 7), (33, 200), (300, 40)]


def marked(size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """An image in blocks of four colours, and the number of the colour of each pixel."""
    width, height = size
    rows, columns = np.arange(height)[:, None] // 5, np.arange(width) // 7
    mask = ((rows + 2 * columns) % 4).astype(np.int32)
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 240]], np.uint8)
    return Image.fromarray(colours[mask]), mask


@pytest.mark.parametrize("size", SIZES)
def test_targets_go_with_their_pixels(size: tuple[int, int]) -> None:
    image, mask = marked(size)
    colours = torch.stack([normalised(image)[:, mask == k].mean(1) for k in np.unique(mask)])
    for place in range(12):
        pixels, targets = random_crop(image, mask, CropSize(28, 0.5, 2.0), 0, place)
        counted = targets != NOT_COUNTED
        seen = pixels[:, counted]
        closest = torch.cdist(seen.T, colours).argmin(1)
        # On edges colours are mixed, and the nearest pixel may be the other one.
        assert (closest == targets[counted]).float().mean() > 0.75
        assert not pixels[:, ~counted].any()


def test_a_crop_is_a_part_of_the_resized_image() -> None:
    image, mask = marked((64, 48))
    width, height = scaled_size((64, 48), 28 * 1.5)
    resized = normalised(image.resize((width, height), Image.Resampling.BICUBIC)).numpy()
    found = set()
    for place in range(30):
        pixels, targets = random_crop(image, mask, CropSize(28, 1.5, 1.5), 0, place)
        near = {
            (row, column, step): np.abs(
                pixels.numpy()[..., ::step] - resized[:, row : row + 28, column : column + 28]
            ).max()
            for row in range(height - 28 + 1)
            for column in range(width - 28 + 1)
            for step in (1, -1)
        }
        row, column, step = min(near, key=near.__getitem__)
        assert near[row, column, step] < 0.2  # the two sides may be resampled in another order
        for i in range(28):
            for j in range(28):  # the pixel that the centre lies in
                y = Fraction(2 * (row + i) + 1, 2) * 48 / height
                x = Fraction(2 * (column + j) + 1, 2) * 64 / width
                assert targets[i, j if step == 1 else 27 - j] == mask[int(y), int(x)]
        found.add((row, column, step))
    rows, columns, steps = (set(one) for one in zip(*found, strict=True))
    assert len(steps) == 2 and len(rows) > 7 and len(columns) > 10


def test_a_crop_depends_on_seed_and_place_alone() -> None:
    image, mask = marked((64, 48))
    crop = CropSize(28, 0.5, 2.0)
    first, again, place, seed = (
        random_crop(image, mask, crop, *one)[0] for one in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, place) and not torch.equal(first, seed)


def test_scales_are_uniform_between_the_two() -> None:
    image, mask = Image.new("RGB", (10, 10)), np.zeros((10, 10), np.int32)
    sides = [
        int((random_crop(image, mask, CropSize(200, 0.25, 0.75), 0, place)[1][0] >= 0).sum())
        for place in range(200)
    ]
    assert min(sides) >= 50 and max(sides) <= 150
    assert np.mean(sides) == pytest.approx(100, abs=5) and np.std(sides) == pytest.approx(
        100 / np.sqrt(12), abs=3
    )


@pytest.mark.parametrize(("length", "pixels"), [(7, 7), (5, 12), (100, 31), (31, 100), (3, 1)])
def test_the_nearest_pixels_are_pillows(length: int, pixels: int) -> None:
    row = Image.fromarray(np.arange(length, dtype=np.uint8)[None])
    resized = np.asarray(row.resize((pixels, 1), Image.Resampling.NEAREST))
    assert nearest(length, pixels).tolist() == resized[0].tolist()


def test_the_longer_side_is_limited() -> None:
    assert scaled_size((640, 480), 518) == (691, 518)
    assert scaled_size((480, 640), 518) == (518, 691)
    assert scaled_size((10_000, 100), 518) == (2072, 21)


@pytest.mark.parametrize(
    ("n_classes", "ignore", "classes", "targets"),
    [
        (3, None, [0, 1, 2], [0, 1, 2]),
        (3, 255, [0, 1, 2], [0, 1, 2, NOT_COUNTED]),
        (3, 1, [0, 2], [0, NOT_COUNTED, 1]),
    ],
)
def test_the_ignored_value_has_no_output(
    n_classes: int, ignore: int | None, classes: list[int], targets: list[int]
) -> None:
    found = Targets(n_classes, ignore)
    values = sorted({*range(n_classes), *([] if ignore is None else [ignore])})
    assert found.classes == classes
    assert found.of(np.array(values)).tolist() == targets
