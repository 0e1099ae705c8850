from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.data import eval_transform
from franca_fast.data.transform import resized_size
from franca_fast.errors import InputError
from python_tests.data.files import memory_taken, picture

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def levels(result: torch.Tensor) -> np.ndarray:
    """The levels 0 to 255 [H, W, 3] that were normalised."""
    pixels = result.permute(1, 2, 0).double() * STD + MEAN
    return (255 * pixels).round().numpy().astype(int)


def resized_and_cropped(image: Image.Image, img_size: int, resize: int) -> np.ndarray:
    """What torchvision's Resize and CenterCrop do, whatever memory it takes."""
    width, height = image.size
    short, long = min(image.size), max(image.size)
    longer = int(resize * long / short)
    size = (resize, longer) if width <= height else (longer, resize)
    left, top = (int(round((side - img_size) / 2.0)) for side in size)  # noqa: RUF046
    whole = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(whole.crop((left, top, left + img_size, top + img_size)), int)


def noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("part", range(4))
def test_pixels_are_those_of_resizing_and_cropping(part: int) -> None:
    rng = np.random.default_rng(part)
    for _ in range(100):
        width, height = (int(side) for side in rng.integers(1, 500, 2))
        width, height = min(width, 3 * height), min(height, 3 * width)
        img_size = int(rng.choice([14, 28, 98]))
        resize = int(rng.choice([img_size, img_size * 8 // 7]))
        image = noise(rng, width, height)
        expected = resized_and_cropped(image, img_size, resize)
        np.testing.assert_array_equal(levels(eval_transform(img_size, resize)(image)), expected)


def test_pixels_of_thin_images_are_nearly_those_of_resizing_and_cropping() -> None:
    # Pillow takes the region that the crop shows in single precision.
    rng, differing, count = np.random.default_rng(0), 0, 0
    for _ in range(150):
        size = [int(rng.integers(1, 20)), int(rng.integers(80, 900))]
        rng.shuffle(size)
        image = noise(rng, *size)
        found = levels(eval_transform(28)(image))
        difference = np.abs(found - resized_and_cropped(image, 28, 28))
        assert difference.max() <= 2
        differing, count = differing + (difference > 0).sum(), count + difference.size
    assert differing < count / 1000


def test_the_other_side_gets_the_length_that_torchvision_and_transformers_give_it() -> None:
    sides = np.arange(1, 401)
    width, height = np.meshgrid(sides, sides)
    for size in (28, 98, 224, 256, 518):
        longer = np.trunc(size * np.maximum(width, height) / np.minimum(width, height))
        expected = [np.where(width > height, longer, size), np.where(width > height, size, longer)]
        found = [resized_size((w, h), size) for h in sides.tolist() for w in sides.tolist()]
        np.testing.assert_array_equal(found, np.stack(expected, -1).reshape(-1, 2))


def test_sides_are_not_rounded_down_by_a_scale_that_is_not_exact() -> None:
    image = picture(0, (110, 55))  # 28 / 55 * 110 is less than 56
    expected = image.resize((56, 28), Image.Resampling.BICUBIC).crop((14, 0, 42, 28))
    np.testing.assert_array_equal(levels(eval_transform(28)(image)), np.asarray(expected, int))


def test_no_shape_takes_much_memory() -> None:
    work = """
from franca_fast.data import eval_transform
for shape in [*SHAPES, (64_000_000, 1)]:
    for size in (224, 518):
        eval_transform(size)(Image.new("RGB", shape))
"""
    # The largest image itself takes 244 MiB.
    assert memory_taken(work) < 244 + 64


@pytest.mark.parametrize("size", [(64, 64), (100, 64), (64, 100), (20, 31), (500, 3)])
def test_eval_transform_takes_the_centre(size: tuple[int, int]) -> None:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    result = eval_transform(32)(image)
    assert result.shape == (3, 32, 32) and result.dtype == torch.float32
    levels = result[0, 16] * 0.229 + 0.485
    assert abs(float(levels.mean()) - 0.5) < 0.06


def test_eval_transform_normalises_and_resizes_as_the_usual_protocol() -> None:
    image = picture(0, (40, 30))
    result = eval_transform(24, resize=27)(image)
    resized = image.resize((36, 27), Image.Resampling.BICUBIC).crop((6, 2, 30, 26))
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(result, (pixels - mean[:, None, None]) / std[:, None, None])


@pytest.mark.parametrize(("size", "resize"), [(0, None), (224, 200)])
def test_eval_transform_refuses_impossible_sizes(size: int, resize: int | None) -> None:
    with pytest.raises(InputError, match="img_size"):
        eval_transform(size, resize)


def test_levels_are_normalised_as_by_torch_to_the_bit() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3)
    expected = (levels.permute(2, 0, 1).float() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    result = eval_transform(16)(Image.fromarray(levels.numpy()))
    assert torch.equal(result, expected)
    assert result.is_contiguous()
