"""Scenes of bundled garments with masks: a small data set for the evaluations of patches.

A scene is made when it is asked for, from the seed, the split and its number alone. Numbers are
hashes, and images are resampled by Pillow in integers, so the bits do not depend on the machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca_fast.data.images import open_images
from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.data.segmented_images import Mask, SegmentedImages
from franca_fast.errors import InputError, did_you_mean

SIDE = 112  # pixels
CLASS_NAMES = (
    "background",
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_SCENES = {"train": 200, "test": 100}
_GARMENTS = (2, 5)  # in a scene
_SIZES = (28, 64)  # side of a garment's square, in pixels of the scene
_TURN = 0.27  # largest tangent of half the angle: 30 degrees to either side
_PLACES = 4  # of so many random places a garment takes the one farthest from the others
_FAINTEST = 12  # grey value of a garment; what is fainter is the ground of its image, or a hole
_PAD = 2  # black pixels around a garment's image, so that its outline closes
_FINE = 4  # each pixel of a scene is the mean of so many squared
_ENLARGED = 8  # times; a garment's image, before it is turned
_NOISE = (((3, 4), 3), ((7, 9), 2), ((23, 29), 1))  # cells of the ground's noise, and its weight


class FashionScenes(SegmentedImages):
    """Garments of Fashion-MNIST on textured grounds, with the mask of their classes.

    2 to 5 garments of random places, sizes, turns and tints, the later ones in front of the
    earlier ones, on smooth coloured noise. A garment is what its outline encloses, dark parts and
    the inside of a bag's handle too. A pixel belongs to the foremost garment that covers at least
    half of it, so each has a label and none is ignored.

    Args:
        split: "train" (200 scenes of the bundled training images) or "test" (100 of the others).
        seed: of the scenes.

    Attributes:
        class_names: of the labels 0, 1, ...; 0 is the background.
        ignore: the label that is never scored; None, there is none.
        names: of the scenes.

    Raises:
        InputError: another split.
    """

    def __init__(self, split: str, seed: int = 0) -> None:
        self.split, self.seed = split.lower(), seed
        if self.split not in _SCENES:
            raise InputError(f"split: {split}{did_you_mean(split, _SCENES)}; accepted: train, test")
        self.class_names = list(CLASS_NAMES)
        self.ignore: int | None = None
        self.names = [f"{self.split}-{i:03d}" for i in range(_SCENES[self.split])]

    def __repr__(self) -> str:
        return f"FashionScenes:split={self.split}:seed={self.seed}"

    def fingerprint(self) -> str:
        """The split and the seed, on which all depends."""
        return repr(self)

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        """Makes a scene; may be called from several threads.

        Args:
            i: its number, from 0.

        Returns:
            the RGB image of 112 x 112 pixels, and the mask, int64 [112, 112].

        Raises:
            IndexError: there is no such scene.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"scene {i} of {len(self)}")
        images, labels = _garments(self.split)
        count, *cells = self._numbers(i, 0, 1 + sum(3 * h * w for (h, w), _ in _NOISE))
        scene, mask = _ground(np.array(cells)), np.zeros((SIDE, SIDE), np.int64)
        places = list[NDArray[np.float64]]()
        for part in range(1, 1 + _between(_GARMENTS, count)):
            numbers = self._numbers(i, part, 7 + 2 * _PLACES)
            chosen = int(numbers[0] * len(images))
            places.append(_place(numbers[7:], places))
            shade, cover = _warped(images[chosen], places[-1], numbers[1:4])
            scene.paste(_tinted(shade, numbers[4:7]), (0, 0), cover)
            mask[np.asarray(cover) >= 128] = 1 + labels[chosen]
        return scene, mask

    def _numbers(self, index: int, part: int, n: int) -> NDArray[np.float64]:
        """Uniform numbers for a part of a scene: the ground is 0, the garments are 1, 2, ..."""
        counter = np.array([[list(_SCENES).index(self.split), index, part]])
        return uniforms(self.seed, Purpose.SCENES, counter, n)[0]


def fashion_scenes(split: str, seed: int = 0) -> FashionScenes:
    """The scenes of a split.

    Args:
        split: "train" or "test", in any case.
        seed: of the scenes; the same seed gives the same bits everywhere.

    Raises:
        InputError: another split.

    Example:
        >>> scenes = fashion_scenes("TEST")
        >>> image, mask = scenes.load(0)
        >>> len(scenes), image.size, mask.shape
        (100, (112, 112), (112, 112))
        >>> [scenes.class_names[label] for label in sorted(set(mask.flat))]
        ['background', 'trousers', 'coat', 'sneaker']
    """
    return FashionScenes(split, seed)


@cache
def _garments(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bundled images, uint8 [n, 28, 28], and their classes, int64 [n]."""
    images, labels = list[NDArray[np.uint8]](), list[int]()
    for _, image, label in open_images(f"FashionMNIST:split={split}"):
        assert label is not None  # all bundled images have one
        images.append(np.asarray(image)[..., 0])
        labels.append(label)
    return np.stack(images), np.array(labels)


def _between(limits: tuple[int, int], number: float) -> int:
    """A whole number within limits, both included."""
    low, high = limits
    return low + int(number * (high - low + 1))


def _ground(numbers: NDArray[np.float64]) -> Image.Image:
    """Smooth coloured noise: a few grids of random colours, enlarged and averaged."""
    total, used = np.zeros((SIDE, SIDE, 3), np.int64), 0
    for (height, width), weight in _NOISE:
        cells = (numbers[used : used + 3 * height * width] * 256).astype(np.uint8)
        used += cells.size
        grid = Image.fromarray(cells.reshape(height, width, 3))
        total += weight * np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int64)
    return Image.fromarray((total // sum(weight for _, weight in _NOISE)).astype(np.uint8))


def _place(numbers: NDArray[np.float64], others: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The centre of a garment, as shares of the scene's sides: the loneliest of several."""
    places = 0.15 + 0.7 * numbers.reshape(_PLACES, 2)
    if not others:
        return places[0]
    distances = np.square(places[:, None] - np.stack(others)).sum(2).min(1)
    return places[distances.argmax()]


def _warped(
    garment: NDArray[np.uint8], place: NDArray[np.float64], numbers: NDArray[np.float64]
) -> tuple[Image.Image, Image.Image]:
    """A garment at its place in the scene: its grey values, and how much it covers of each pixel.

    Both are made fine and nearest, then averaged: Pillow does this in integers.
    """
    padded = np.pad(garment, _PAD)
    outline = 255 * _filled(padded >= _FAINTEST).astype(np.uint8)
    side = _between(_SIZES, numbers[0])
    half = _TURN * (2 * numbers[1] - 1)  # cosine and sine without a library's
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    mirror = -1 if numbers[2] < 0.5 else 1
    scale = _ENLARGED * garment.shape[0] / (side * _FINE)
    a, b = mirror * scale * cosine, mirror * scale * sine
    d, e = -scale * sine, scale * cosine
    (x, y), middle = place * SIDE * _FINE, _ENLARGED * padded.shape[0] / 2
    matrix = (a, b, middle - a * x - b * y, d, e, middle - d * x - e * y)

    def warp(pixels: NDArray[np.uint8]) -> Image.Image:
        large = Image.fromarray(pixels).resize(
            (_ENLARGED * padded.shape[1], _ENLARGED * padded.shape[0]), Image.Resampling.BILINEAR
        )
        size = (SIDE * _FINE, SIDE * _FINE)
        return large.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)

    cover = warp(outline).point([0] * 128 + [255] * 128)
    return warp(padded).reduce(_FINE), cover.reduce(_FINE)


def _filled(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What the True pixels enclose, with gaps of a pixel or two closed; the border is False."""
    closed = ~_grown(~_grown(inside))
    outside = np.zeros_like(closed)
    outside[0] = True
    while True:
        grown = _grown(outside) & ~closed
        if (grown == outside).all():
            return ~outside
        outside = grown


def _grown(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The True pixels and their four neighbours."""
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    return grown


def _tinted(shade: Image.Image, numbers: NDArray[np.float64]) -> Image.Image:
    """Grey values as shades of a random colour, the darkest of which is not black."""
    tint = 96 + (numbers * 160).astype(np.int64)
    grey = np.asarray(shade, np.int64)[..., None]
    return Image.fromarray((tint * (48 + grey * 207 // 255) // 255).astype(np.uint8))
