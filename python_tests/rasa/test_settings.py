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
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        FitSettings(**values)
