"""Folding the removal of positions into the linear layer that comes next."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from franca_fast.errors import InputError

if TYPE_CHECKING:
    from franca_fast.hub.projector import PositionProjector


def fold_linear(layer: nn.Linear, projector: PositionProjector) -> nn.Linear:
    """A copy of `layer` that gives on raw patch tokens what `layer` gives on cleaned ones.

    With the map z -> M z and the layer's W and b: W (M z) + b = (W M) z + b, so the weight becomes
    W M, computed in float64, and the bias stays.

    Only a layer that reads patch tokens directly can take the map up, such as a segmentation
    probe. The backbone's own last layer, a LayerNorm, comes before the map and cannot: its scale
    acts on single dimensions and its mean and variance are those of each token. A backbone by
    itself gets the map as one more layer (`PositionProjector.attach`).

    Args:
        layer: reads patch tokens [..., d]; not changed.
        projector: of width d.

    Raises:
        InputError: no linear layer, or another width.

    Example:
        >>> from franca_fast.rasa import PositionProjector
        >>> projector, probe = PositionProjector(torch.randn(2, 2, 16)), nn.Linear(16, 3)
        >>> z = torch.randn(5, 16)
        >>> torch.allclose(projector.fold(probe)(z), probe(projector.apply(z)), atol=1e-5)
        True
    """
    if not isinstance(layer, nn.Linear):
        raise InputError(f"layer {type(layer).__name__}: a torch.nn.Linear expected")
    if layer.in_features != projector.width:
        raise InputError(
            f"layer: reads {layer.in_features} features, the projector is for {projector.width}"
        )
    folded = copy.deepcopy(layer)
    with torch.no_grad():
        weight = layer.weight.double().cpu()
        folded.weight.copy_(weight - (weight @ projector.write.T) @ projector.read)
    return folded
