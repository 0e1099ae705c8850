from __future__ import annotations

import pytest

from franca_fast.data import CropSettings, MaskSettings
from franca_fast.errors import InputError


def test_defaults_are_dinov2s() -> None:
    crops = CropSettings()
    assert (crops.brightness, crops.contrast, crops.saturation, crops.hue) == (0.4, 0.4, 0.2, 0.1)
    assert crops.blur_probability_global == (1.0, 0.1)
    assert MaskSettings().mask_ratio_min_max == (0.1, 0.65)


def test_lists_from_configuration_files_are_accepted() -> None:
    assert CropSettings(global_crops_scale=[0.4, 1.0]).global_crops_scale == (0.4, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("global_crops_size", 4),
        ("global_crops_size", 28.5),
        ("local_crops_number", -1),
        ("global_crops_scale", (0.0, 1.0)),
        ("global_crops_scale", (0.5, 1.1)),
        ("local_crops_scale", (0.5, 0.3)),
        ("local_crops_scale", (0.5,)),
        ("aspect_ratio", (1.5, 1.0)),
        ("blur_sigma", (0.0, 1.0)),
        ("flip_probability", 1.2),
        ("blur_probability_global", (1.0, -0.1)),
        ("hue", 0.6),
        ("saturation", -0.1),
    ],
)
def test_wrong_crops_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        CropSettings(**{name: value})  # type: ignore[arg-type]


def test_a_crop_that_patches_do_not_cover_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"local_crops_size: 96 .* patch size 14.* 84 and 98"):
        CropSettings().check_patch_size(14)
    CropSettings(local_crops_number=0).check_patch_size(14)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kind", "cyclik", "did you mean 'cyclic'"),
        ("mask_sample_probability", -0.1, "mask_sample_probability"),
        ("mask_ratio_min_max", (0.7, 0.3), "mask_ratio_min_max"),
    ],
)
def test_wrong_masks_are_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskSettings(**{name: value})  # type: ignore[arg-type]
