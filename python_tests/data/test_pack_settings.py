from __future__ import annotations

from typing import Any

import pytest

from franca_fast.data import PackSettings
from franca_fast.errors import InputError


@pytest.mark.parametrize(
    ("values", "most"),
    [
        ({}, 64_000_000),
        ({"max_side": 512}, 1_000_000_000),
        ({"max_side": 512, "max_image_pixels": 9}, 9),
        ({"max_image_pixels": 9}, 9),
    ],
)
def test_large_images_are_read_where_they_are_made_smaller(
    values: dict[str, Any], most: int
) -> None:
    assert PackSettings(**values).decoding.max_pixels == most


def test_settings_of_earlier_versions_are_described_as_they_were() -> None:
    names = {"pattern", "max_size", "max_count", "seed", "max_side", "quality"}
    assert PackSettings(max_side=9).description.keys() == names
    described = PackSettings(levels="minmax", max_image_pixels=7).description
    assert described["levels"] == "minmax" and described["max_image_pixels"] == 7


@pytest.mark.parametrize(
    "values", [{"levels": "9:1"}, {"max_image_pixels": 0}, {"quality": 101}, {"max_side": 0}]
)
def test_bad_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(values))}: .*; accepted: "):
        PackSettings(**values)
