"""Removal of absolute positions from patch tokens, and a backbone that ends in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.models.vision_transformer import VisionTransformer


class RemovePositions(nn.Module):
    """z -> z - write^T (read z): m directions out of d, at 4 m d operations a token.

    A new one is the identity; `franca_fast.rasa.PositionProjector.module` makes those that remove
    something.

    Args:
        directions: m.
        width: d.

    Attributes:
        read, write: buffers, float32 [m, d].

    Example:
        >>> import torch
        >>> RemovePositions(4, 16)(torch.ones(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    read: Tensor
    write: Tensor

    def __init__(self, directions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("read", torch.zeros(directions, width))
        self.register_buffer("write", torch.zeros(directions, width))

    def forward(self, features: Tensor) -> Tensor:
        """[..., d] -> the same shape and dtype.

        Raises:
            InputError: another width.
        """
        width = self.read.shape[1]
        if features.shape[-1] != width:
            raise InputError(f"features: {tuple(features.shape)}; accepted: [..., {width}]")
        exact = torch.promote_types(features.dtype, torch.float32)
        z, read, write = features.to(exact), self.read.to(exact), self.write.to(exact)
        return (z - (z @ read.T) @ write).to(features.dtype)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The whole map as one matrix M, float32 [d, d], for column vectors: cleaned = M z."""
        return self(torch.eye(self.read.shape[1], device=self.read.device)).T.contiguous()


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
    def of(cls, model: VisionTransformer, removal: RemovePositions) -> ProjectedBackbone:
        """Puts a removal of positions behind a backbone.

        Args:
            model: shares its weights with the result and is not changed.
            removal: of the model's width.

        Raises:
            InputError: another width, or positions are removed already.
        """
        if isinstance(model, ProjectedBackbone):
            raise InputError("model: removes positions already; accepted: one that does not")
        directions, width = removal.read.shape
        if model.embed_dim != width:
            raise InputError(
                f"rasa: a projector for width {width}; accepted: the model's, {model.embed_dim}"
            )
        with torch.device("meta"):  # the weights are about to be those of the model
            projected = cls(rasa_directions=directions, **model.config)
        for name, child in model.named_children():
            setattr(projected, name, child)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(projected, name, parameter)
        projected.rasa = removal.to(model.cls_token.device)
        return projected.train(model.training)

    def forward_features(
        self,
        x: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor | None] | None = None,
        patches: Tensor | Sequence[Tensor] | None = None,
    ) -> Any:
        """As `VisionTransformer.forward_features`, with positions removed from patch tokens."""
        outputs = super().forward_features(x, masks, patches)
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
        return clean_last_block(outputs, self.rasa, reshape, return_class_token)


def clean_last_block(
    outputs: Sequence[Any], removal: RemovePositions, reshape: bool, return_class_token: bool
) -> tuple[Any, ...]:
    """Removes positions from the last entry of what `get_intermediate_layers` gave."""
    *earlier, last = outputs
    channel = 1 if reshape else -1
    patches = last[0] if return_class_token else last
    patches = removal(patches.movedim(channel, -1)).movedim(-1, channel)
    return (*earlier, (patches, last[1]) if return_class_token else patches)
