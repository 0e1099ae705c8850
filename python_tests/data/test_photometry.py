from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from franca_fast.data import CropSettings
from franca_fast.data.photometry import (
    PhotometricParameters,
    draw_parameters,
    gaussian_blur,
    photometric,
)
from python_tests.data.files import picture

# Without normalisation the results can be compared with other libraries' pixels.
PLAIN = CropSettings(global_crops_size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def nothing(n: int) -> PhotometricParameters:
    return PhotometricParameters(
        jitter=np.zeros(n, bool),
        factors=np.tile(np.array([1, 1, 1, 0], np.float32), (n, 1)),
        order=np.tile(np.arange(4), (n, 1)),
        greyscale=np.zeros(n, bool),
        sigma=np.zeros(n, np.float32),
        solarize=np.zeros(n, bool),
    )


def only(column: int, factor: float) -> PhotometricParameters:
    parameters = nothing(1)
    parameters.jitter[:] = True
    parameters.factors[:, column] = factor
    return parameters


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))[None]


def shown(result: Tensor) -> np.ndarray:
    return (result[0].permute(1, 2, 0) * 255).numpy()


def test_nothing_to_do_leaves_the_image() -> None:
    image = picture(0, (16, 16))
    result = photometric(pixels(image), nothing(1), PLAIN)
    assert result.shape == (1, 3, 16, 16) and result.dtype == torch.float32
    np.testing.assert_allclose(shown(result), np.asarray(image), atol=1e-3)


def test_normalisation_is_imagenets() -> None:
    white = torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)
    settings = CropSettings()
    result = photometric(white, nothing(1), settings)[0, :, 0, 0]
    expected = (1 - torch.tensor(settings.mean)) / torch.tensor(settings.std)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
@pytest.mark.parametrize(
    ("column", "enhance"),
    [
        (BRIGHTNESS, ImageEnhance.Brightness),
        (CONTRAST, ImageEnhance.Contrast),
        (SATURATION, ImageEnhance.Color),
    ],
)
def test_jitter_agrees_with_pillow(column: int, enhance: type, factor: float) -> None:
    image = picture(1, (16, 16))
    result = photometric(pixels(image), only(column, factor), PLAIN)
    expected = np.asarray(enhance(image).enhance(factor), np.float32)
    np.testing.assert_allclose(shown(result), expected, atol=1.6)  # Pillow rounds


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.03, 0.1, 0.4])
def test_hue_agrees_with_colorsys(shift: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    image[0, 0] = image[0, 0, :, :1]  # greys, too
    result = photometric(torch.from_numpy(image), only(HUE, shift), PLAIN)
    for (y, x), colour in zip(np.ndindex(8, 8), image[0].reshape(-1, 3) / 255, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
        np.testing.assert_allclose(result[0, :, y, x], expected, atol=1e-5)


def test_jitter_follows_the_order_of_each_crop() -> None:
    image = pixels(picture(2, (16, 16))).repeat(2, 1, 1, 1)
    parameters = nothing(2)
    parameters.jitter[:] = True
    parameters.factors[:] = [1.4, 0.6, 1.2, 0.1]
    parameters.order[:] = [[0, 1, 2, 3], [3, 1, 0, 2]]
    result = photometric(image, parameters, PLAIN)
    for row, order in enumerate(parameters.order):
        expected = image[:1].float()
        for column in order:
            once = only(int(column), float(parameters.factors[row, column]))
            expected = 255 * photometric(expected, once, PLAIN).permute(0, 2, 3, 1)
        expected = expected[0].permute(2, 0, 1) / 255
        torch.testing.assert_close(result[row], expected, atol=1e-5, rtol=0)
    assert float((result[0] - result[1]).abs().max()) > 0.01


def test_greyscale_agrees_with_pillow() -> None:
    image = picture(3, (16, 16))
    parameters = replace(nothing(1), greyscale=np.array([True]))
    result = shown(photometric(pixels(image), parameters, PLAIN))
    expected = np.asarray(image.convert("L"), np.float32)[..., None].repeat(3, -1)
    np.testing.assert_allclose(result, expected, atol=0.6)


def test_solarize_agrees_with_pillow() -> None:
    image = picture(4, (16, 16))
    parameters = replace(nothing(1), solarize=np.array([True]))
    result = shown(photometric(pixels(image), parameters, PLAIN))
    np.testing.assert_allclose(result, np.asarray(ImageOps.solarize(image, 128)), atol=1e-3)


def test_blur_is_the_convolution_with_each_crops_kernel() -> None:
    images = torch.rand(3, 2, 12, 9)
    sigma = torch.tensor([0.1, 1.0, 2.0])
    result = gaussian_blur(images, sigma)
    reach = np.arange(-4, 5)
    for image, found, s in zip(images.double().numpy(), result, sigma.tolist(), strict=True):
        kernel = np.exp(-0.5 * (reach / s) ** 2)
        kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(1, 2))
        np.testing.assert_allclose(found, np.einsum("chwij,ij->chw", windows, kernel), atol=1e-6)


def test_only_the_chosen_crops_change() -> None:
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    parameters = nothing(4)
    untouched = photometric(images, parameters, PLAIN)
    parameters.sigma[1] = 1.5
    parameters.greyscale[2] = True
    changed = (photometric(images, parameters, PLAIN) != untouched).flatten(1).any(1)
    assert changed.tolist() == [False, True, True, False]


def test_one_channel_gives_what_three_equal_ones_give() -> None:
    grey = torch.randint(0, 256, (64, 16, 16, 1), dtype=torch.uint8)
    settings = CropSettings(global_crops_size=16, local_crops_number=2)
    parameters = draw_parameters(settings, 0, np.arange(32), local=False)
    one = photometric(grey, parameters, settings)
    three = photometric(grey.expand(-1, -1, -1, 3), parameters, settings)
    torch.testing.assert_close(one, three, atol=2e-5, rtol=0)


def test_values_stay_in_range_and_finite() -> None:
    images = torch.randint(0, 256, (256, 16, 16, 3), dtype=torch.uint8)
    images[:8], images[8:16] = 0, 255
    wild = replace(PLAIN, brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5)
    result = photometric(images, draw_parameters(wild, 0, np.arange(128), local=False), wild)
    assert float(result.min()) >= -1e-6 and float(result.max()) <= 1 + 1e-6


def test_parameters_have_the_frequencies_and_ranges_of_the_settings() -> None:
    settings = CropSettings(local_crops_number=2)
    n = 4000
    both = draw_parameters(settings, 0, np.arange(n), local=False)
    local = draw_parameters(settings, 0, np.arange(n), local=True)
    first, second = np.arange(2 * n) < n, np.arange(2 * n) >= n
    assert abs(both.jitter.mean() - 0.8) < 0.02 and abs(both.greyscale.mean() - 0.2) < 0.02
    low, high = [0.6, 0.6, 0.8, -0.1], [1.4, 1.4, 1.2, 0.1]
    np.testing.assert_allclose(both.factors.min(0), low, atol=0.002)
    np.testing.assert_allclose(both.factors.max(0), high, atol=0.002)
    np.testing.assert_allclose(both.factors.mean(0), [1, 1, 1, 0], atol=0.01)
    blurred = both.sigma > 0
    assert blurred[first].all() and abs(blurred[second].mean() - 0.1) < 0.02
    assert abs((local.sigma > 0).mean() - 0.5) < 0.03
    assert both.sigma[first].min() < 0.11 and both.sigma.max() > 1.99
    assert not both.solarize[first].any() and abs(both.solarize[second].mean() - 0.2) < 0.03
    assert not local.solarize.any()
    orders = np.unique(both.order, axis=0, return_counts=True)[1]
    assert len(orders) == 24 and orders.min() > 0.7 * 2 * n / 24


def test_parameters_depend_on_the_number_of_the_sample_only() -> None:
    settings = CropSettings(local_crops_number=3)
    whole = draw_parameters(settings, 0, np.array([7, 8, 9]), local=True)
    alone = draw_parameters(settings, 0, np.array([8]), local=True)
    np.testing.assert_array_equal(whole.factors[1::3], alone.factors)
    np.testing.assert_array_equal(whole.sigma[1::3], alone.sigma)


def test_strengths_of_zero_turn_everything_off() -> None:
    off = replace(
        PLAIN,
        jitter_probability=0.0,
        greyscale_probability=0.0,
        blur_probability_global=(0.0, 0.0),
        solarize_probability_global=(0.0, 0.0),
    )
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    result = photometric(images, draw_parameters(off, 0, np.arange(4), local=False), off)
    torch.testing.assert_close(result, images.permute(0, 3, 1, 2) / 255)
