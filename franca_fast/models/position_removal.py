"""A backbone whose patch tokens come out without their absolute positions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.hub.projector import PositionProjector, RemovePositions
from franca_fast.models import VisionTransformer


class ProjectedBackbone(VisionTransformer):
    """A vision transformer followed by the removal of positions from its patch tokens.

    Like the backbone that it is made of, except for `x_norm_patchtokens`, and the last block's
    entry of `get_intermediate_layers` when it is normalised: there the projector, which was fitted
    on such tokens, has been applied, after the final LayerNorm. CLS and register tokens,
    `x_prenorm` and the outputs of earlier blocks are unchanged, as in the paper and the released
    code.

    `save_backbone` keeps the projector with the weights, and `load_model` restores both.

    Args:
        rasa_directions: number of directions that are removed.
        config: arguments of `VisionTransformer`.

    Attributes:
        rasa: the map, see `RemovePositions`.
    """

    def __init__(self, *, rasa_directions: int, **config: Any) -> None:
        super().__init__(**config)
        self.config["rasa_directions"] = rasa_directions
        self.rasa = RemovePositions(rasa_directions, self.embed_dim)

    @classmethod
    def of(cls, model: VisionTransformer, projector: PositionProjector) -> ProjectedBackbone:
        """See `PositionProjector.attach`."""
        if isinstance(model, ProjectedBackbone):
            raise InputError("model: positions are removed from its patch tokens already")
        if model.embed_dim != projector.width:
            raise InputError(
                f"rasa: the projector is for width {projector.width}, the model's is "
                f"{model.embed_dim}"
            )
        import torch

        with torch.device("meta"):  # the weights are about to be those of the model
            projected = cls(rasa_directions=projector.rank, **model.config)
        for name, child in model.named_children():
            setattr(projected, name, child)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(projected, name, parameter)
        projected.rasa = projector.module().to(model.cls_token.device)
        return projected.train(model.training)

    def forward_features(
        self,
        x: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor | None] | None = None,
    ) -> Any:
        """As `VisionTransformer.forward_features`, with positions removed from patch tokens."""
        outputs = super().forward_features(x, masks)
        for output in [outputs] if isinstance(outputs, dict) else outputs:
            output["x_norm_patchtokens"] = self.rasa(output["x_norm_patchtokens"])
        return outputs

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """As `VisionTransformer.get_intermediate_layers`; the last block's entry is cleaned."""
        outputs = super().get_intermediate_layers(x, n, reshape, return_class_token, norm)
        if not norm or not (isinstance(n, int) or self.depth - 1 in n):
            return outputs
        *earlier, last = outputs
        channel = 1 if reshape else -1
        patches = last[0] if return_class_token else last
        patches = self.rasa(patches.movedim(channel, -1)).movedim(-1, channel)
        return (*earlier, (patches, last[1]) if return_class_token else patches)


def as_projector(rasa: PositionProjector | str | os.PathLike[str]) -> PositionProjector:
    """A projector as it is, or read from its file."""
    return rasa if isinstance(rasa, PositionProjector) else PositionProjector.from_files(rasa)
