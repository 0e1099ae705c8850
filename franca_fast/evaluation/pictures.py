"""The two kinds of picture that are written: sheets of images, and a curve; needs matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from PIL import Image

from franca_fast.errors import InputError
from franca_fast.files import atomic_path
from franca_fast.spelling import spell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PICTURES = (
    "pictures need matplotlib, which is not installed; pip install 'franca-fast[plots]' brings it"
)
_DPI = 144  # twice the size at which the text is read: sharp on fine screens and on paper
_GAP = 0.06  # between the images of a sheet, as a share of their side


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def check_can_draw() -> None:
    """Refuses to go on without matplotlib, before the work whose result is a picture.

    Raises:
        InputError: matplotlib is not installed.
    """
    if not can_draw():
        raise InputError(NO_PICTURES)


def sheet(
    rows: Mapping[str, Sequence[Image.Image]],
    title: str,
    columns: Sequence[str] = (),
    cell: float = 0.8,
) -> Figure:
    """Lays images out in labelled rows.

    Args:
        rows: label of the row -> its images, equally many; all are scaled to one size.
        title: written above.
        columns: captions of the columns.
        cell: side of an image, in inches; one has 144 pixels.

    Returns:
        a figure for `save_png`, which grows it by what is written beside the images.

    Raises:
        InputError: matplotlib is not installed.

    Example:
        >>> sheet({"red": [Image.new("RGB", (4, 4), "red")]}, "Colours").axes[0].get_ylabel()
        'red'
    """
    n_columns = len(next(iter(rows.values())))
    figure = _figure(n_columns * cell, len(rows) * cell)
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": _GAP, "hspace": _GAP}
    axes = figure.subplots(len(rows), n_columns, squeeze=False, gridspec_kw=edges)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(_plain(label), rotation=0, ha="right", va="center")
        for axis, image in zip(line, images, strict=True):
            # The edges of patches stay sharp when enlarged; larger images are reduced smoothly.
            enlarged = image.width < cell * _DPI
            axis.imshow(image, interpolation="nearest" if enlarged else "antialiased")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, caption in zip(axes[0], columns, strict=False):
        axis.set_title(_plain(caption), fontsize="small")
    above = 0.3 if columns else 0.1  # inches
    figure.suptitle(_plain(title), y=1 + above / (len(rows) * cell), va="bottom", fontsize="medium")
    return figure


def curve(
    steps: Sequence[int], values: Sequence[float], window: int, title: str, y_label: str
) -> Figure:
    """Draws what was measured at every step faintly, and its moving average over it.

    Args:
        steps: where it was measured.
        values: as many; those that are not finite are left out.
        window: number of values in each average.
        title: written above.
        y_label: what the values are, with their unit.

    Returns:
        a figure for `save_png`.

    Raises:
        InputError: matplotlib is not installed.

    Example:
        >>> curve([1, 2], [3.0, 2.0], 2, "Training", "loss (nats)").axes[0].get_ylabel()
        'loss (nats)'
    """
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    means = [fmean(ys[max(0, i - window) : i]) for i in range(1, len(ys) + 1)]
    figure = _figure(7.2, 4.2)
    axis = figure.subplots()
    axis.plot(xs, ys, color="tab:blue", alpha=0.35, linewidth=0.8, label="each step")
    label = f"mean of the last {window} steps"
    axis.plot(xs, means, color="tab:blue", linewidth=1.8, label=label)
    axis.set(title=_plain(title), xlabel="step", ylabel=_plain(y_label))
    axis.margins(x=0.01)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, complete or not at all; equal figures give equal bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary,
            format="png",
            bbox_inches="tight",
            pad_inches=0.1,
            metadata={"Software": None},  # matplotlib's version
        )


def _plain(text: str) -> str:
    """Text, such as the name of a class, that matplotlib takes for what it is, not for TeX."""
    return spell(text).replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches, unknown to pyplot, whose state is the user's."""
    check_can_draw()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI)
