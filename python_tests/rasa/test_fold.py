from __future__ import annotations

import pytest
import torch
from torch import nn

from franca_fast.errors import InputError
from franca_fast.rasa import PositionProjector


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_folded_layer_equals_projector_then_layer(compatible, bias):
    projector = PositionProjector(torch.randn(8, 2, 96), compatible=compatible)
    layer, tokens = nn.Linear(96, 50, bias=bias), torch.randn(4, 9, 96)
    folded = projector.fold(layer)
    torch.testing.assert_close(folded(tokens), layer(projector.apply(tokens)), rtol=0, atol=1e-5)
    assert (folded(tokens) - layer(tokens)).abs().max() > 1e-2


def test_layer_itself_is_not_changed_and_the_bias_stays():
    layer = nn.Linear(16, 3)
    before = layer.weight.clone()
    folded = PositionProjector(torch.randn(2, 2, 16)).fold(layer)
    assert torch.equal(layer.weight, before)
    assert torch.equal(folded.bias, layer.bias)


def test_folding_twice_changes_nothing_more():
    projector = PositionProjector(torch.randn(2, 2, 16))
    once = projector.fold(nn.Linear(16, 3))
    torch.testing.assert_close(projector.fold(once).weight, once.weight, rtol=0, atol=1e-6)


def test_dtype_is_kept():
    folded = PositionProjector(torch.randn(2, 2, 16)).fold(nn.Linear(16, 3).bfloat16())
    assert folded.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [nn.LayerNorm(16), nn.Linear(15, 3)])
def test_layers_that_cannot_take_it_are_refused(layer):
    with pytest.raises(InputError, match="layer"):
        PositionProjector(torch.randn(2, 2, 16)).fold(layer)
