from __future__ import annotations

import pytest

from franca_fast.errors import InputError
from franca_fast.rasa import FitSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iterations": 0}, "iterations: 0"),
        ({"readout": "sigmoidal"}, "did you mean 'sigmoid'"),
        ({"crops": "centre"}, "did you mean 'center'"),
        ({"lr": 0.0}, "lr: 0"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"epochs": 0}, "epochs: 0"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"stop_below": 1.0}, "stop_below: 1"),
        ({"cache_gb": -1.0}, "cache_gb: -1"),
        ({"num_workers": -1}, "num_workers: -1"),
        ({"max_image_pixels": 0}, "max_image_pixels: 0"),
        ({"levels": "9:1"}, "levels: '9:1'"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        FitSettings(**values)


def test_settings_of_decoding_count_only_where_they_are_given():
    # Partial fits of earlier versions know neither.
    assert FitSettings().outcome.keys().isdisjoint({"max_image_pixels", "levels"})
    assert FitSettings(levels="minmax").outcome["levels"] == "minmax"
