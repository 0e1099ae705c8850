from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from franca_fast.errors import InputError
from franca_fast.evaluation.pictures import (
    can_draw,
    check_can_draw,
    curve,
    save_png,
    sheet,
)


def drawn(figure, folder: Path) -> Image.Image:
    save_png(figure, folder / "picture.png")
    return Image.open(folder / "picture.png").convert("RGB")


def box_of(picture: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of a colour."""
    matches = (np.asarray(picture) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all(-1)
    ys, xs = matches.nonzero()
    assert len(ys), f"nothing is {colour}"
    return xs.min(), ys.min(), xs.max(), ys.max()


def test_sheet_places_every_image(tmp_path: Path) -> None:
    colours = [["red", "blue"], ["lime", "yellow"]]
    images = [[Image.new("RGB", (4, 4), colour) for colour in line] for line in colours]
    picture = drawn(sheet({"first": images[0], "second": images[1]}, "title"), tmp_path)
    boxes = [[box_of(picture, colour) for colour in line] for line in colours]
    (red, blue), (lime, yellow) = boxes
    assert red[2] < blue[0] and red[3] < lime[1] and blue[3] < yellow[1] and lime[2] < yellow[0]
    for left, top, right, bottom in (red, blue, lime, yellow):
        assert 105 <= right - left <= 116 and 105 <= bottom - top <= 116  # 0.8 inches


def test_sheet_is_labelled() -> None:
    image = Image.new("RGB", (4, 4))
    figure = sheet({"first": [image] * 2, "second": [image] * 2}, "Title", ("left", "right"))
    assert figure.get_suptitle() == "Title"
    assert [axis.get_title() for axis in figure.axes] == ["left", "right", "", ""]
    assert [axis.get_ylabel() for axis in figure.axes] == ["first", "", "second", ""]


def test_labels_of_a_sheet_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = Image.new("RGB", (4, 4))
    figure = sheet({"first": [image] * 2, "second": [image] * 2}, "Title", ("left", "right"))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)  # which is what places the texts
    texts = [a.title for a in figure.axes] + [a.yaxis.label for a in figure.axes]
    texts = [text for text in (*texts, figure._suptitle) if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    boxes += [axis.get_window_extent(renderer) for axis in figure.axes]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_enlarged_patches_keep_their_colours(tmp_path: Path) -> None:
    patches = Image.fromarray(np.uint8([[[255, 0, 0], [0, 0, 255]]] * 2))
    picture = drawn(sheet({"": [patches]}, ""), tmp_path)
    left, right = box_of(picture, "red"), box_of(picture, "blue")
    assert right[0] - left[2] == 1  # no colour lies between
    assert (left[1], left[3]) == (right[1], right[3])


def test_large_images_are_reduced_smoothly(tmp_path: Path) -> None:
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = np.asarray(drawn(sheet({"": [Image.fromarray(stripes)]}, ""), tmp_path))
    inside = pixels[40:100, 40:100].astype(float)
    assert abs(inside.mean() - 128) < 10 and inside.std() < 20


def test_curve_goes_through_the_points() -> None:
    axis = curve(range(1, 12), [float(y) for y in range(11)], 2, "Title", "loss (nats)").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[x + 1, x] for x in range(11)]
    assert (axis.get_title(), axis.get_xlabel()) == ("Title", "step")
    assert axis.get_ylabel() == "loss (nats)"
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["each step", "mean of the last 2 steps"]


def test_moving_average_looks_back() -> None:
    axis = curve([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], 2, "", "").axes[0]
    assert axis.lines[1].get_xydata().tolist() == [[1, 1.0], [2, 2.0], [3, 4.0], [4, 6.0]]


def test_values_that_are_not_finite_are_left_out() -> None:
    axis = curve([0, 1, 2, 3], [1.0, math.nan, 2.0, math.inf], 1, "", "").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[0, 1.0], [2, 2.0]]


@pytest.mark.parametrize(
    "points", [([], []), ([3], [1.5]), ([0, 1], [2.0, 2.0]), ([0, 1, 2], [1.0, math.nan, 2.0])]
)
def test_curves_survive_few_or_bad_points(points, tmp_path: Path) -> None:
    assert drawn(curve(*points, 1, "title", "loss"), tmp_path).width > 700


def test_png_is_written_whole(tmp_path: Path) -> None:
    save_png(curve([1], [1.0], 1, "", ""), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").format == "PNG"
    assert len(list(tmp_path.iterdir())) == 1


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_png(curve([1, 2], [1.0, 2.0], 1, "Title", "loss"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_and_the_settings_of_the_user_are_left_alone(tmp_path: Path) -> None:
    code = """
import sys
import matplotlib
before = matplotlib.rcParams.copy()
from franca_fast.evaluation.pictures import curve, save_png
save_png(curve([1, 2], [1.0, 2.0], 1, "", ""), sys.argv[1])
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_draw()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not can_draw()
    for call in (check_can_draw, lambda: curve([1], [1.0], 1, "", "")):
        with pytest.raises(InputError, match=r"pip install 'franca-fast\[plots\]'"):
            call()


@pytest.mark.parametrize("text", ["$x^{$", "a$b$", "\\frac", "\udce9", "\ud800", "a\nb", "\0"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_text_can_be_written(tmp_path: Path, text: str) -> None:
    image = Image.new("RGB", (4, 4))
    save_png(sheet({text: [image]}, text, [text]), tmp_path / "sheet.png")
    save_png(curve([1], [1.0], 1, text, text), tmp_path / "curve.png")
