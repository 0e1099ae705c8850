"""Removal of absolute positions from the patch tokens of any encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.models.position_removal import (
    ProjectedBackbone,
    RemovePositions,
    clean_last_block,
)


class ProjectedEncoder(nn.Module):
    """An encoder of any kind, followed by the removal of positions from its patch tokens.

    Like the encoder itself, except for `x_norm_patchtokens` and the last block's entry of
    `get_intermediate_layers` when it is normalised. CLS and register tokens, also a mean of patch
    tokens that stands for CLS, and the keys of the last block stay as they are. Backbones of this
    package have a class of their own, `ProjectedBackbone`, which can be saved and exported.

    Args:
        encoder: has DINOv2's `forward_features`, a dictionary with `x_norm_patchtokens`
            [B, n, d]; shares its weights with the result and is not changed.
        removal: of the tokens' width d.

    Attributes:
        encoder: as given.
        rasa: the map, see `RemovePositions`.
        embed_dim: d.
        patch_size, depth, config: the encoder's; None (an empty dictionary) where it has none.

    Raises:
        InputError: an encoder without `forward_features`, of another width, or one whose positions
            are removed already.

    Example:
        >>> import torch
        >>> class Colours(torch.nn.Module):
        ...     patch_size = 4
        ...
        ...     def forward_features(self, images):
        ...         tokens = torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
        ...         return {"x_norm_clstoken": tokens.mean(1), "x_norm_patchtokens": tokens}
        >>> clean = ProjectedEncoder(Colours(), RemovePositions(1, 3))
        >>> clean.forward_features(torch.randn(2, 3, 8, 12))["x_norm_patchtokens"].shape
        torch.Size([2, 6, 3])
    """

    def __init__(self, encoder: Any, removal: RemovePositions) -> None:
        if isinstance(encoder, (ProjectedEncoder, ProjectedBackbone)):
            raise InputError("model: removes positions already; accepted: one that does not")
        if getattr(encoder, "forward_features", None) is None:
            raise InputError("model: no patch tokens; accepted: a module with forward_features")
        width = removal.read.shape[1]
        own = getattr(encoder, "embed_dim", width)
        if own != width:
            raise InputError(f"rasa: a projector for width {width}; accepted: the model's, {own}")
        super().__init__()
        self.encoder = encoder
        self.patch_size: int | None = getattr(encoder, "patch_size", None)
        self.embed_dim = width
        self.depth: int | None = getattr(encoder, "depth", None)
        self.config: dict[str, Any] = dict(getattr(encoder, "config", {}))
        is_module = isinstance(encoder, nn.Module)
        weight = next(encoder.parameters(), None) if is_module else None
        self.rasa = removal if weight is None else removal.to(weight.device)
        self.train(is_module and encoder.training)

    def forward(self, images: Tensor) -> Tensor:
        """What the encoder itself gives."""
        return self.encoder(images)

    def forward_features(self, images: Tensor, **options: Any) -> dict[str, Any]:
        """The encoder's tokens, with positions removed from those of patches."""
        tokens = self.encoder.forward_features(images, **options)
        return {**tokens, "x_norm_patchtokens": self.rasa(tokens["x_norm_patchtokens"])}

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """The encoder's, of the form of `VisionTransformer`'s; the last block's entry is cleaned.

        Raises:
            InputError: the encoder has no blocks to ask for, or block numbers without a `depth`.
        """
        layers = getattr(self.encoder, "get_intermediate_layers", None)
        if layers is None or (self.depth is None and not isinstance(n, int)):
            lacks = "get_intermediate_layers" if layers is None else "depth"
            raise InputError(f"model: without {lacks}; accepted: one that has it, as our own do")
        outputs = layers(x, n, reshape, return_class_token, norm)
        if not norm or not (isinstance(n, int) or self.depth - 1 in n):  # type: ignore[operator]
            return tuple(outputs)
        return clean_last_block(outputs, self.rasa, reshape, return_class_token)

    def last_keys(self, images: Tensor) -> Tensor:
        """Keys of the encoder's last block, which lie before the removal.

        Raises:
            InputError: the encoder does not give them.
        """
        last_keys = getattr(self.encoder, "last_keys", None)
        if last_keys is None:
            raise InputError("model: without last_keys; accepted: one that has it")
        keys: Tensor = last_keys(images)
        return keys
