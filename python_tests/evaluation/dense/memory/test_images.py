from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.randomness import Purpose, uniforms
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.images import (
    Augmentation,
    MemoryImages,
    Part,
    crop_box,
    jittered,
)
from python_tests.evaluation.dense.in_context_sets import KnownImages


def drawn(n: int, width: int) -> np.ndarray:
    return uniforms(5, Purpose.MEMORY_IMAGES, np.arange(n), width)


class Chequered(KnownImages):
    """Every pixel says where it is, in image and mask."""

    def load(self, i: int) -> tuple[Image.Image, np.ndarray]:
        _, mask = super().load(i)
        rows, columns = np.indices(mask.shape)
        pixels = np.stack([rows, columns, np.full(mask.shape, 7 * i)], 2).astype(np.uint8)
        return Image.fromarray(pixels), 256 * rows + columns


@pytest.fixture
def images() -> Chequered:
    return Chequered([np.zeros((48, 60), np.int64)] * 5, 0, 256 * 48)


@pytest.mark.parametrize("size", [(500, 375), (100, 400), (7, 5), (1, 1)])
def test_crops_are_inside_with_areas_and_aspects_as_asked(size: tuple[int, int]) -> None:
    width, height = size
    shares, central = [], 0
    for numbers in drawn(400, 40):
        left, top, right, bottom = crop_box(size, (0.5, 2.0), numbers)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        if min(size) > 50:
            assert 0.74 < w / h < 1.35
        shares.append(w * h / (width * height))
        central += (left, top) == ((width - w) // 2, (height - h) // 2)
    if size == (500, 375):
        # Sides are rounded, so that a share may be a little below the range.
        assert 0.497 < min(shares) < 0.52 and max(shares) <= 1 and 0.6 < np.mean(shares) < 0.8
    if size == (100, 400):  # none of aspect 3/4 or more has half of this area
        assert central == 400 and set(shares) == {100 * 133 / 40000}


def test_masks_are_cut_as_their_images(images: Chequered) -> None:
    memory = MemoryImages(images, range(5), Augmentation(size=56, jitter=0), seed=0, epoch=0)
    for i in range(5):
        image, mask = memory.load(i)
        assert image.size == (56, 56) and mask.shape == (56, 56)
        pixels = np.asarray(image).astype(int)
        # A pixel of the crop shows about the place that its mask names.
        assert np.abs(pixels[..., 0] - mask // 256).max() <= 2
        assert np.abs(pixels[..., 1] - mask % 256).max() <= 2


def test_what_is_drawn_depends_on_number_seed_and_epoch_alone(images: Chequered) -> None:
    def crops(order: list[int], seed: int = 0, epoch: int = 0) -> dict[str, bytes]:
        reordered = Chequered([np.zeros((48, 60), np.int64)] * 5, 0, 256 * 48, order=order)
        reordered.load = lambda i: images.load(order[i])  # type: ignore[method-assign]
        memory = MemoryImages(reordered, order, Augmentation(size=28), seed, epoch)
        return {name: memory.load(i)[0].tobytes() for i, name in enumerate(memory.names)}

    straight = crops([0, 1, 2, 3, 4])
    assert crops([3, 1, 4, 0, 2]) == straight
    others = [crops([0, 1, 2, 3, 4], seed=1), crops([0, 1, 2, 3, 4], epoch=1)]
    assert all(other[name] != straight[name] for other in others for name in straight)
    assert len(set(straight.values())) == 5


def test_fingerprints_tell_what_differs(images: Chequered) -> None:
    some = [
        images,
        Part(images, range(1, 5)),
        Part(images, range(0, 4)),
        *(
            MemoryImages(images, range(5), Augmentation(jitter=jitter), seed, epoch)
            for jitter, seed, epoch in ((0.1, 0, 0), (0.1, 0, 1), (0.1, 1, 0), (0.2, 0, 0))
        ),
    ]
    assert len({one.fingerprint() for one in some}) == len(some)


def test_a_part_has_its_images(images: Chequered) -> None:
    part = Part(images, range(2, 4))
    assert part.names == images.names[2:4] and len(part) == 2
    assert [np.asarray(part.load(i)[0])[0, 0, 2] for i in range(2)] == [14, 21]


def one_pixel(colour: tuple[int, int, int], numbers: list[float], jitter: float = 0.1):
    image = Image.new("RGB", (2, 2), colour)
    return jittered(image, Augmentation(jitter=jitter), np.array(numbers)).getpixel((0, 0))


def test_each_change_is_what_it_says() -> None:
    # Whether and how much of brightness, contrast, saturation, hue; 0.5 and more is not.
    colour = (200, 100, 60)
    assert one_pixel(colour, [1, 1, 1, 1, 1, 1, 1, 1.0]) == colour
    assert one_pixel(colour, [0, 1, 1, 1, 0, 0, 0, 0.0]) == (180, 90, 54)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 60)
    near = [round(grey + 0.9 * (c - grey)) for c in colour]
    for numbers in ([1, 0, 1, 1, 1, 0, 1, 1.0], [1, 1, 0, 1, 1, 1, 0, 1.0]):
        assert np.abs(np.subtract(one_pixel(colour, numbers), near)).max() <= 1
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    turned = [round(255 * c) for c in colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation, value)]
    found = one_pixel(colour, [1, 1, 1, 0, 1, 1, 1, 0.75], jitter=0.5)
    assert np.abs(np.subtract(found, turned)).max() <= 6  # of 256 steps of hue


def test_half_of_the_images_get_each_change() -> None:
    image = Image.new("RGB", (2, 2), (200, 100, 60))
    changed = [
        jittered(image, Augmentation(), numbers).getpixel((0, 0)) != (200, 100, 60)
        for numbers in drawn(300, 8)
    ]
    assert 0.85 < np.mean(changed) < 1  # 15 of 16 get some, of which some are too small to see


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"scale": (0.0, 1.0)}, r"crop_scale: \(0.0, 1.0\); accepted: 0 < smallest"),
        ({"scale": (2.0, 1.0)}, "crop_scale"),
        ({"scale": (1.0, float("inf"))}, "crop_scale"),
        ({"jitter": 0.6}, "jitter: 0.6; accepted: from 0 to 0.5"),
        ({"probability": 1.5}, "jitter_probability: 1.5; accepted: from 0 to 1"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Augmentation(**values)
