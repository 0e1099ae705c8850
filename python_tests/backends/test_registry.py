"""Names of backends that are asked for."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError


@pytest.mark.parametrize("name", ["gpu", "", None, 3])
def test_unknown_names_are_refused_and_change_nothing(name):
    before = ff.backend_table()
    with pytest.raises(InputError, match=r"use_backend: unknown backend .*accepted: auto, cuda"):
        ff.use_backend(name)
    assert ff.backend_table() == before


def test_an_unknown_name_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("FRANCA_FAST_BACKEND", "gpu")
    with ff.use_backend("auto"):  # forgets what was chosen before; then nothing is asked for
        ff.backends.registry._set_request(None)
        with pytest.raises(InputError, match="FRANCA_FAST_BACKEND: unknown backend 'gpu'"):
            ff.ops.sinkhorn_knopp(torch.zeros(2, 3), 0.1)
