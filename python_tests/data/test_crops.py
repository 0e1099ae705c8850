from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from franca_fast.data import CropSettings
from franca_fast.data.crops import CropBuffer, crop_regions
from franca_fast.data.decoding import BadImage, LazyImage
from python_tests.data.files import encoded, memory_taken, picture

SETTINGS = CropSettings(global_crops_size=32, local_crops_size=16, local_crops_number=3)


def draw(sizes: list[tuple[int, int]], settings: CropSettings = SETTINGS) -> np.ndarray:
    return crop_regions(settings, 0, np.arange(len(sizes)), sizes).boxes


def test_regions_lie_in_the_image_with_area_and_aspect_within_the_limits() -> None:
    sizes = [(640, 480)] * 2000
    boxes = draw(sizes)
    assert boxes.shape == (2000, 5, 4)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    assert boxes.min() >= 0 and (boxes[..., 2:] <= [640 + 1e-9, 480 + 1e-9]).all()
    share = width * height / (640 * 480)
    assert share[:, :2].min() > 0.32 - 1e-9 and share[:, :2].max() < 1
    assert share[:, 2:].min() > 0.05 - 1e-9 and share[:, 2:].max() < 0.32 + 1e-9
    aspect = width / height
    assert aspect.min() > 3 / 4 - 1e-9 and aspect.max() < 4 / 3 + 1e-9
    # Small regions always fit, so their area is uniform, and the aspect in its logarithm.
    assert abs(share[:, 2:].mean() - 0.185) < 0.004
    assert abs(np.log(aspect[:, 2:]).mean()) < 0.01
    place = boxes[:, 2:, 0] / (640 - width[:, 2:])
    assert abs(place.mean() - 0.5) < 0.02 and place.min() < 0.01 and place.max() > 0.99


def test_an_image_too_narrow_for_any_attempt_gives_its_central_part() -> None:
    boxes = draw([(1000, 10), (10, 1000)])[:, 0]
    np.testing.assert_allclose(boxes[0], [500 - 10 * 2 / 3, 0, 500 + 10 * 2 / 3, 10])
    np.testing.assert_allclose(boxes[1], [0, 500 - 10 * 2 / 3, 10, 500 + 10 * 2 / 3])


def test_regions_depend_on_the_number_of_the_sample_only() -> None:
    together = crop_regions(SETTINGS, 0, np.array([5, 9]), [(60, 40), (30, 50)])
    alone = crop_regions(SETTINGS, 0, np.array([9]), [(30, 50)])
    np.testing.assert_array_equal(together.boxes[1], alone.boxes[0])
    np.testing.assert_array_equal(together.flips[1], alone.flips[0])


def test_half_of_the_crops_are_mirrored() -> None:
    flips = crop_regions(SETTINGS, 0, np.arange(2000), [(9, 9)] * 2000).flips
    np.testing.assert_allclose(flips.mean(0), 0.5, atol=0.05)
    never = CropSettings(flip_probability=0)
    assert not crop_regions(never, 0, np.arange(50), [(9, 9)] * 50).flips.any()


def cut_one(image: Image.Image, format: str, boxes: np.ndarray, flips: list[bool]) -> CropBuffer:
    buffer = CropBuffer(SETTINGS, 2)
    buffer.cut(1, LazyImage(encoded(image, format)), boxes, np.array(flips))
    return buffer


def test_crops_are_what_pillow_cuts_and_mirrors() -> None:
    image = picture(0, (90, 70))
    boxes = draw([image.size])[0]
    buffer = cut_one(image, "PNG", boxes, [False, True, False, True, False])
    for crop, box in enumerate(boxes.tolist()):
        size = 32 if crop < 2 else 16
        expected = image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box))
        if crop in (1, 3):
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crops = buffer.global_crops if crop < 2 else buffer.local_crops
        found = crops[2 * (crop if crop < 2 else crop - 2) + 1]  # crop-major, slot 1 of 2
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_jpeg_decoded_at_a_fraction_gives_nearly_the_same_crops() -> None:
    image = picture(1, (800, 600))
    boxes = draw([image.size])[0]
    exact = cut_one(image, "PNG", boxes, [False] * 5)
    quick = cut_one(image, "JPEG", boxes, [False] * 5)
    difference = exact.global_crops[1].astype(int) - quick.global_crops[1]
    assert np.abs(difference).mean() < 3


def test_crops_of_large_images_are_nearly_those_of_one_exact_resize() -> None:
    rng = np.random.default_rng(0)
    image = picture(1, (1200, 900))
    noisy = np.asarray(image, np.int16) + rng.integers(-20, 21, (900, 1200, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    boxes = draw([image.size])[0]
    crops = cut_one(image, "PNG", boxes, [False] * 5).global_crops
    for crop in range(2):
        box = tuple(boxes[crop].tolist())
        exact = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box=box), int)
        assert np.abs(exact - crops[2 * crop + 1]).mean() < 1


def test_grey_stays_one_channel_until_a_colour_comes() -> None:
    grey, colour = picture(2, mode="L"), picture(3)
    boxes = draw([grey.size])[0]
    flips = np.zeros(5, bool)
    buffer = CropBuffer(SETTINGS, 3)
    buffer.cut(0, LazyImage(encoded(grey)), boxes, flips)
    assert buffer.global_crops.shape == (6, 32, 32, 1)
    before = buffer.local_crops[0].copy()
    buffer.cut(1, LazyImage(encoded(colour)), boxes, flips)
    buffer.cut(2, LazyImage(encoded(grey)), boxes, flips)
    assert buffer.local_crops.shape == (9, 16, 16, 3)
    for slot in (0, 2):
        np.testing.assert_array_equal(buffer.local_crops[slot], np.repeat(before, 3, -1))


def test_no_local_crops() -> None:
    settings = CropSettings(global_crops_size=32, local_crops_number=0)
    buffer = CropBuffer(settings, 1)
    image = picture(4)
    regions = crop_regions(settings, 0, np.arange(1), [image.size])
    buffer.cut(0, LazyImage(encoded(image)), regions.boxes[0], regions.flips[0])
    assert buffer.global_crops.shape == (2, 32, 32, 3) and len(buffer.local_crops) == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 1)])
def test_tiny_and_narrow_images(size: tuple[int, int]) -> None:
    image = picture(5, size)
    regions = crop_regions(SETTINGS, 0, np.arange(1), [size])
    buffer = CropBuffer(SETTINGS, 1)
    buffer.cut(0, LazyImage(encoded(image)), regions.boxes[0], regions.flips[0])
    assert buffer.global_crops.shape == (2, 32, 32, 3)


def test_no_shape_takes_much_memory() -> None:
    work = """
import numpy as np
from franca_fast.data import CropSettings
from franca_fast.data.crops import CropBuffer, crop_regions
from franca_fast.data.decoding import BadImage, LazyImage
for size in (224, 518):
    settings = CropSettings(global_crops_size=size, local_crops_size=size)
    for file in FILES:
        lazy = LazyImage(file.getvalue())
        boxes, flips = crop_regions(settings, 0, np.arange(1), [lazy.size])
        CropBuffer(settings, 1).cut(0, lazy, boxes[0], flips[0])
"""
    assert memory_taken(work) < 64


def test_a_crop_that_memory_cannot_hold_makes_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = LazyImage(encoded(picture(0)))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(BadImage, match="too large for memory"):
        CropBuffer(SETTINGS, 1).cut(0, lazy, draw([lazy.size])[0], np.zeros(5, bool))
