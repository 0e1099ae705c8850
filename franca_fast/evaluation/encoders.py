"""What evaluations ask of an encoder, and the ways to turn its tokens into features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError, did_you_mean
from franca_fast.hub import check_img_size, load_model
from franca_fast.models import VisionTransformer
from franca_fast.processor import fast_bfloat16

# Any callable [B, 3, S, S] -> [B, d] can be evaluated by its output. A module with DINOv2's
# `forward_features` (a dictionary of tokens) can also be pooled over patches and visualised.
Encoder = Callable[[Tensor], Tensor]

_CLS, _PATCHES = "x_norm_clstoken", "x_norm_patchtokens"
_POOLINGS: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "cls": lambda tokens: tokens[_CLS],
    "patch_mean": lambda tokens: tokens[_PATCHES].float().mean(1),
    "cls_patch_mean": lambda tokens: torch.cat([tokens[_CLS], tokens[_PATCHES].float().mean(1)], 1),
}
POOLINGS = tuple(_POOLINGS)
PRECISIONS = ("auto", "bf16", "fp32")


def as_encoder(model: Encoder | str | os.PathLike[str]) -> Encoder:
    """An encoder as it is, or the model that `load_model` loads by its name or path.

    A checkpoint's folder, `runs/mine/checkpoints/1000`, stands for its teacher.
    """
    return load_model(model) if isinstance(model, (str, os.PathLike)) else model


def pooled_features(encoder: Encoder, images: Tensor, pooling: str) -> Tensor:
    """Features of a batch of images.

    Args:
        encoder: a module with `forward_features`, or a callable whose output is the feature.
        images: [B, 3, S, S] on the encoder's device.
        pooling: "cls", "patch_mean" (mean of the patch tokens) or "cls_patch_mean" (both, joined).

    Returns:
        float32 [B, d].

    Raises:
        InputError: unknown pooling, or one that the encoder has no tokens for.
    """
    check_pooling(pooling)
    if pooling == "cls" and isinstance(encoder, VisionTransformer):
        # The last block is then computed for the CLS tokens alone.
        no_patches = torch.empty(0, dtype=torch.int64, device=images.device)
        return encoder.forward_features(images, patches=no_patches)[_CLS].float()
    forward_features = getattr(encoder, "forward_features", None)
    if forward_features is not None:
        return _POOLINGS[pooling](forward_features(images)).float()
    if pooling != "cls":
        raise InputError(f"pooling: '{pooling}', without forward_features; accepted: cls")
    features = encoder(images)
    if features.dim() != 2:
        raise InputError(f"encoder: gave {tuple(features.shape)}; accepted: [B, d]")
    return features.float()


def patch_token_grid(encoder: Encoder, images: Tensor) -> Tensor:
    """Patch tokens laid out as the patches of the image.

    Args:
        encoder: a module with `forward_features` and `patch_size`.
        images: [B, 3, H, W] on the encoder's device.

    Returns:
        float32 [B, H / patch, W / patch, d].

    Raises:
        InputError: the encoder has no patch tokens.
    """
    forward_features = getattr(encoder, "forward_features", None)
    patch_size = getattr(encoder, "patch_size", None)
    if forward_features is None or patch_size is None:
        raise InputError(
            "encoder: no patch tokens; accepted: a module with forward_features and patch_size"
        )
    tokens = forward_features(images)[_PATCHES].float()
    height, width = images.shape[2] // patch_size, images.shape[3] // patch_size
    return tokens.reshape(len(tokens), height, width, -1)


def check_pooling(pooling: str) -> None:
    """Refuses a pooling that does not exist.

    Raises:
        InputError: with the nearest name.
    """
    if pooling not in _POOLINGS:
        raise InputError(
            f"pooling: '{pooling}'{did_you_mean(pooling, POOLINGS)}; accepted: "
            f"{', '.join(POOLINGS)}"
        )


def image_size_of(encoder: Any, img_size: int | None) -> int:
    """The side of the images to feed: as asked, else the encoder's own, else 224.

    Raises:
        InputError: not a multiple of the encoder's patch size.
    """
    size = getattr(encoder, "config", {}).get("img_size", 224) if img_size is None else img_size
    check_img_size(size, getattr(encoder, "patch_size", 1))
    return size


def precision_of(encoder: Encoder, precision: str) -> str:
    """The precision in which an encoder computes.

    Args:
        encoder: the encoder, on its device.
        precision: "fp32" leaves it as its weights are; "bf16" computes matrix products and
            attention in bfloat16; "auto" is bf16 where the encoder's device multiplies such
            matrices fast (see `franca_fast.processor`), and fp32 elsewhere.

    Returns:
        "bf16" or "fp32".

    Raises:
        InputError: another precision.

    Example:
        >>> precision_of(torch.nn.Flatten(), "bf16")
        'bf16'
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision: '{precision}'{did_you_mean(precision, PRECISIONS)}; accepted: "
            f"{', '.join(PRECISIONS)}"
        )
    if precision == "auto":
        return "bf16" if fast_bfloat16(device_of(encoder)) else "fp32"
    return precision


def device_of(encoder: Encoder) -> torch.device:
    """The device of the encoder's parameters; the CPU when it has none."""
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def inference(encoder: Encoder, precision: str = "fp32") -> Iterator[torch.device]:
    """Runs the block without gradients and with the encoder in evaluation mode.

    Args:
        encoder: the encoder, on its device.
        precision: see `precision_of`.

    Yields:
        the encoder's device.
    """
    module = encoder if isinstance(encoder, nn.Module) else None
    was_training = module is not None and module.training
    device = device_of(encoder)
    autocast: AbstractContextManager[object] = nullcontext()
    if precision_of(encoder, precision) == "bf16":  # one context, which casts weights once
        autocast = torch.autocast(device.type, torch.bfloat16)
    if module is not None:
        module.eval()
    try:
        with torch.no_grad(), autocast:
            yield device
    finally:
        if module is not None:
            module.train(was_training)
