"""The two kinds of picture that are written: sheets of images, and curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from franca_fast.files import atomic_path

_INK, _FAINT, _PAPER = (34, 34, 34), (225, 225, 225), (255, 255, 255)
_COLOURS = ((31, 119, 180), (214, 82, 40), (44, 140, 70), (130, 90, 170), (120, 120, 120))
_SCALE = 2  # curves are drawn this much larger, then reduced, so that lines are smooth
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(rows: Mapping[str, Sequence[Image.Image]], cell: int = 112, gap: int = 6) -> Image.Image:
    """Lays images out in labelled rows.

    Args:
        rows: label of the row -> its images; all are scaled to squares.
        cell: side of a square, in pixels.
        gap: white space between squares, in pixels.

    Returns:
        an RGB image.
    """
    font = ImageFont.load_default(13)
    margin = gap + max(_text_size(label, font)[0] for label in rows) + gap
    columns = max(len(images) for images in rows.values())
    pitch = cell + gap
    canvas = Image.new("RGB", (margin + columns * pitch, gap + len(rows) * pitch), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for r, (label, images) in enumerate(rows.items()):
        top = gap + r * pitch
        _, height = _text_size(label, font)
        draw.text((gap, top + (cell - height) // 2), label, _INK, font)
        for c, image in enumerate(images):
            scaled = image.convert("RGB").resize((cell, cell), _resampling(image, cell))
            canvas.paste(scaled, (margin + c * pitch, top))
    return canvas


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, complete or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG")


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    x_label: str,
    size: tuple[int, int] = (720, 420),
) -> Image.Image:
    """Draws lines over a common axis; values that are not finite are left out.

    Args:
        series: label -> (x, y), equally long.
        title: written above.
        x_label: written below.
        size: width and height in pixels.

    Returns:
        an RGB image.

    Example:
        >>> curves({"loss": ([0, 1, 2], [3.0, 2.0, 1.5])}, "Training", "step").size
        (720, 420)
    """
    points = {
        label: [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x + y)]
        for label, (xs, ys) in series.items()
    }
    width, height = size[0] * _SCALE, size[1] * _SCALE
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13 * _SCALE)
    axes = _Axes.around([p for line in points.values() for p in line], width, height)
    _draw_axes(draw, axes, font)
    for i, (label, line) in enumerate(points.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        if len(line) > 1:
            draw.line([axes.place(*p) for p in line], colour, 2 * _SCALE, joint="curve")
        y = axes.top + (8 + 18 * i) * _SCALE
        left = axes.right - 8 * _SCALE - _text_size(label, font)[0]
        draw.text((left, y), label, colour, font)
        draw.line(
            [(left - 26 * _SCALE, y + 8 * _SCALE), (left - 6 * _SCALE, y + 8 * _SCALE)],
            colour,
            3 * _SCALE,
        )
    draw.text((axes.left, 12 * _SCALE), title, _INK, ImageFont.load_default(16 * _SCALE))
    middle = (axes.left + axes.right - _text_size(x_label, font)[0]) // 2
    draw.text((middle, height - 24 * _SCALE), x_label, _INK, font)
    return canvas.resize(size, Image.Resampling.LANCZOS)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value with up to `window - 1` before it."""
    return [
        sum(part) / len(part)
        for part in (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    ]


@dataclass(frozen=True)
class _Axes:
    """Where the plot lies on the canvas, and which values its edges stand for."""

    left: int
    top: int
    right: int
    bottom: int
    x_ticks: list[float]
    y_ticks: list[float]
    x_range: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], width: int, height: int) -> _Axes:
        xs, ys = zip(*points, strict=True) if points else ((0.0, 1.0), (0.0, 1.0))
        left, right = 58 * _SCALE, width - 18 * _SCALE
        top, bottom = 42 * _SCALE, height - 52 * _SCALE
        x_range = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
        inside = [t for t in nice_ticks(*x_range) if x_range[0] <= t <= x_range[1]]
        return cls(left, top, right, bottom, inside, nice_ticks(min(ys), max(ys)), x_range)

    def place(self, x: float, y: float) -> tuple[float, float]:
        x0, x1 = self.x_range
        y0, y1 = self.y_ticks[0], self.y_ticks[-1]
        across = self.left + (x - x0) / (x1 - x0) * (self.right - self.left)
        return across, self.bottom - (y - y0) / (y1 - y0) * (self.bottom - self.top)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose [low, high], about so many steps apart.

    Example:
        >>> nice_ticks(0.3, 9.2)
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _draw_axes(draw: ImageDraw.ImageDraw, axes: _Axes, font: _Font) -> None:
    for tick in axes.y_ticks:
        _, y = axes.place(axes.x_range[0], tick)
        draw.line([(axes.left, y), (axes.right, y)], _FAINT, _SCALE)
        wide, high = _text_size(f"{tick:g}", font)
        draw.text((axes.left - wide - 6 * _SCALE, y - high * 0.75), f"{tick:g}", _INK, font)
    for tick in axes.x_ticks:
        x, _ = axes.place(tick, axes.y_ticks[0])
        draw.line([(x, axes.bottom), (x, axes.bottom + 4 * _SCALE)], _INK, _SCALE)
        wide, _ = _text_size(f"{tick:g}", font)
        draw.text((x - wide / 2, axes.bottom + 7 * _SCALE), f"{tick:g}", _INK, font)
    draw.line([(axes.left, axes.bottom), (axes.right, axes.bottom)], _INK, _SCALE)


def _text_size(text: str, font: _Font) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text)
    return math.ceil(right - left), math.ceil(bottom - top)


def _resampling(image: Image.Image, cell: int) -> Image.Resampling:
    """Keeps the edges of patches sharp when enlarging, and is smooth when reducing."""
    return Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
