"""Keys of the last attention layer, patch by patch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder
from franca_fast.models import ProjectedEncoder

_QKV = "attn.qkv"
_ACCEPTED = (
    f"a module whose last block has {_QKV} and that has patch_size, or one with a method "
    "last_keys(images) -> [B, h, w, d]"
)


def last_keys(encoder: Encoder, images: Tensor) -> Tensor:
    """Keys of the last block's self-attention, laid out as the patches of the image.

    An encoder's own method `last_keys(images)` is used where there is one. Otherwise the output of
    the last module named `attn.qkv`, a projection to queries, keys and values in this order as
    DINO, DINOv2, timm and this package have it, is taken while the encoder runs. The removal of
    positions (RASA) acts on output tokens and changes no keys.

    Args:
        encoder: a module; see above.
        images: [B, 3, H, W] on the encoder's device, H and W multiples of the patch.

    Returns:
        float32 [B, H / patch, W / patch, d], all heads joined.

    Raises:
        InputError: an encoder without such a layer, or keys of another shape.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", patch_size=7, img_size=28).eval()
        >>> last_keys(model, torch.randn(2, 3, 28, 35)).shape
        torch.Size([2, 4, 5, 128])
    """
    if isinstance(encoder, ProjectedEncoder):  # removes positions from output tokens alone
        return last_keys(encoder.encoder, images)
    own = getattr(encoder, "last_keys", None)
    if own is not None:
        return _checked(own(images).float(), len(images))
    patch_size = getattr(encoder, "patch_size", None)
    layer = _last_qkv(encoder)
    if patch_size is None or layer is None:
        raise InputError(f"encoder: no keys of attention; accepted: {_ACCEPTED}")
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        getattr(encoder, "forward_features", encoder)(images)
    finally:
        handle.remove()
    height, width = images.shape[2] // patch_size, images.shape[3] // patch_size
    # CLS and register tokens stand before the patches.
    if len(seen) != 1 or seen[0].dim() != 3 or seen[0].shape[1] < height * width:
        shapes = [tuple(one.shape) for one in seen]
        raise InputError(f"encoder: {_QKV} gave {shapes}; accepted: [B, tokens, 3 d], once a batch")
    keys = seen[0][:, -height * width :].float().chunk(3, dim=-1)[1]
    return _checked(keys.unflatten(1, (height, width)), len(images))


def _last_qkv(encoder: Any) -> nn.Module | None:
    """The last layer, in the order of the network, that projects to queries, keys and values."""
    if not isinstance(encoder, nn.Module):
        return None
    layers = [m for name, m in encoder.named_modules() if f".{name}".endswith(f".{_QKV}")]
    return layers[-1] if layers else None


def _checked(keys: Tensor, batch: int) -> Tensor:
    if keys.dim() != 4 or len(keys) != batch:
        raise InputError(f"last_keys: {tuple(keys.shape)}; accepted: [{batch}, h, w, d]")
    if not bool(torch.isfinite(keys).all()):
        raise InputError("last_keys: not finite; accepted: a model whose keys are finite")
    return keys
