"""What the configuration asks of the data."""

from __future__ import annotations

import pytest

from franca_fast.config.data import crop_settings, mask_settings
from franca_fast.config.schema import Config
from python_tests.training.tiny import tiny_config


def test_crops_and_augmentation_reach_the_data() -> None:
    config = tiny_config("crops.local_crops_scale=[0.1,0.2]", "augmentation.hue=0.3")
    settings = crop_settings(config)
    assert (settings.global_crops_size, settings.local_crops_size) == (28, 14)
    assert (settings.local_crops_scale, settings.hue) == ((0.1, 0.2), 0.3)


def test_defaults_are_dinov2s() -> None:
    settings = crop_settings(Config())
    assert settings.local_crops_number == 8
    assert settings.blur_probability_global == (1.0, 0.1)


@pytest.mark.parametrize(
    ("block", "inverse", "roll", "kind"),
    [
        (True, True, True, "cyclic"),
        (True, True, False, "inverse_block"),
        (True, False, True, "block"),
        (False, True, True, "random"),
    ],
)
def test_flags_name_the_mask(block: bool, inverse: bool, roll: bool, kind: str) -> None:
    config = Config()
    config.train.use_block_masking = block
    config.train.use_inverse_block = inverse
    config.train.roll = roll
    settings = mask_settings(config)
    assert (settings.kind, settings.roll) == (kind, roll)


def test_mask_ratios_reach_the_data() -> None:
    settings = mask_settings(tiny_config("ibot.mask_ratio_min_max=[0.2,0.4]"))
    assert settings.mask_ratio_min_max == (0.2, 0.4)
