from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from franca_fast.evaluation.pictures import curves, moving_average, nice_ticks, save_png, sheet


def test_sheet_places_every_image() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    picture = sheet({"first": [red, blue], "second": [blue, red]}, cell=20, gap=4)
    left = picture.width - 48
    for column, row, colour in [(0, 0, "red"), (1, 0, "blue"), (0, 1, "blue"), (1, 1, "red")]:
        middle = (left + 24 * column + 10, 4 + 24 * row + 10)
        assert picture.getpixel(middle) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_enlarged_patches_keep_their_colours() -> None:
    patches = Image.new("RGB", (2, 1))
    patches.putdata([(255, 0, 0), (0, 0, 255)])
    picture = sheet({"": [patches]}, cell=40)
    colours = {colour for _, colour in picture.getcolors()}
    assert colours == {(255, 0, 0), (0, 0, 255), (255, 255, 255)}


def has_colour_near(picture: Image.Image, colour: tuple[int, int, int], box) -> bool:
    pixels = picture.crop(box).getcolors(1 << 20)
    return any(max(abs(a - b) for a, b in zip(c, colour, strict=True)) < 40 for _, c in pixels)


def test_curve_runs_from_corner_to_corner() -> None:
    picture = curves({"": (range(11), range(11))}, "", "step", size=(400, 300))
    blue = (31, 119, 180)
    assert has_colour_near(picture, blue, (58, 220, 90, 250))
    assert has_colour_near(picture, blue, (350, 42, 382, 70))
    assert not has_colour_near(picture, blue, (58, 60, 150, 150))


@pytest.mark.parametrize(
    "points", [([], []), ([3], [1.5]), ([0, 1], [2.0, 2.0]), ([0, 1, 2], [1.0, math.nan, 2.0])]
)
def test_curves_survive_few_or_bad_points(points) -> None:
    assert curves({"loss": points}, "title", "step").size == (720, 420)


def test_ticks_are_round_and_enclose() -> None:
    for low, high in [(0.0, 1.0), (7.93, 11.7), (-3e-5, 8e-5), (1e6, 1.2e6), (5.0, 5.0)]:
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
        assert 2 <= len(ticks) <= 8


def test_moving_average_looks_back() -> None:
    assert moving_average([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_png_is_written_whole(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (3, 2), "red"), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (3, 2)
    assert len(list(tmp_path.iterdir())) == 1
