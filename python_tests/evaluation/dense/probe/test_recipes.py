from __future__ import annotations

from typing import Any

import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.probe.recipes import (
    LinearSegmentationSettings,
    SegmentationRecipe,
)

VOC = 10_582


def resolved(patch_size: int = 14, **settings: Any) -> SegmentationRecipe:
    return LinearSegmentationSettings(**settings).resolved(VOC, patch_size)


def test_the_recipe_of_franca() -> None:
    # 50 epochs of 10,582 images in batches of 16.
    assert resolved() == SegmentationRecipe(33_069, 16, 518, 259, "sgd", 1e-3, 5e-4, 0, 0.0)
    assert LinearSegmentationSettings().resize == (0.5, 2.0)


def test_the_recipe_of_dinov3() -> None:
    expected = SegmentationRecipe(40_000, 16, 512, 341, "adamw", 1e-3, 1e-3, 1500, 0.1)
    assert resolved(16, recipe="dinov3") == expected


@pytest.mark.parametrize(
    ("recipe", "patch_size", "crop", "stride"),
    [
        ("dinov3", 14, 518, 341),
        ("dinov3", 8, 512, 341),
        ("franca", 16, 512, 259),
        ("franca", 400, 400, 259),
        ("franca", 1200, 1200, 259),
        ("dinov3", 300, 600, 341),
        ("dinov3", 310, 620, 341),
    ],
)
def test_the_recipes_crop_becomes_the_nearest_multiple_of_the_patch(
    recipe: str, patch_size: int, crop: int, stride: int
) -> None:
    found = resolved(patch_size, recipe=recipe)
    assert (found.crop, found.stride) == (crop, stride)


def test_a_crop_that_is_set_keeps_the_ratio_to_the_stride() -> None:
    assert resolved(crop=112).stride == 56
    assert resolved(recipe="dinov3", crop=112).stride == 75
    assert resolved(crop=112, stride=112).stride == 112
    assert resolved(stride=500).stride == 500
    with pytest.raises(InputError, match="stride: 113; accepted: at most the crop, 112"):
        resolved(crop=112, stride=113)


def test_steps_are_given_or_follow_from_epochs() -> None:
    assert resolved(epochs=1, batch_size=1000).iterations == 11
    assert resolved(iterations=7).iterations == 7
    assert resolved(recipe="dinov3", epochs=2, batch_size=10_582).iterations == 2
    with pytest.raises(InputError, match="epochs: 1 with iterations 1; accepted: one of the two"):
        LinearSegmentationSettings(epochs=1, iterations=1)


def test_the_warm_up_keeps_its_share_unless_it_is_set() -> None:
    assert resolved(recipe="dinov3", iterations=400).warm_up == 15
    assert resolved(recipe="dinov3", iterations=400, warm_up=0).warm_up == 0
    assert resolved(warm_up=3).warm_up == 3


def test_other_settings_replace_the_recipes() -> None:
    changed = {"optimizer": "adamw", "learning_rate": 0.5, "weight_decay": 0.0, "dropout": 0.5}
    found = resolved(**changed)
    assert {name: getattr(found, name) for name in changed} == changed


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": "francs"},
        {"epochs": 0},
        {"iterations": 0},
        {"batch_size": 0},
        {"crop": 0},
        {"stride": -1},
        {"optimizer": "adam"},
        {"learning_rate": -1.0},
        {"learning_rate": float("inf")},
        {"weight_decay": float("nan")},
        {"warm_up": -1},
        {"dropout": 1.0},
        {"resize": (2.0, 0.5)},
        {"resize": (0.0, 0.5)},
        {"resize": (1.0, float("inf"))},
        {"resize": (1.0,)},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: .*; accepted: "):
        LinearSegmentationSettings(**wrong)
