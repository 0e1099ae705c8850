"""Reading an architecture from the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.hub.weight_files import shorten
from franca_fast.models.architectures import ARCHITECTURES


def infer_backbone(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Reads the constructor arguments of `VisionTransformer` from a backbone's weights.

    Everything that shapes tell is read. The number of heads leaves no trace in them: it is taken
    from the known architecture of the same width and depth, and left out when there is none. The
    options of the position interpolation leave none either: those of DINOv2's public models with
    registers for weights that have registers, the defaults otherwise.

    Args:
        state: key -> tensor with normalised keys (see `normalize_backbone_keys`).
        source: what messages call the weights.

    Returns:
        constructor arguments, without "num_heads" when it cannot be known.

    Raises:
        InputError: the tensors are not those of such a backbone.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight")
    if absent := [key for key in needed if key not in state]:
        raise InputError(
            f"weights '{source}': no vision transformer, it lacks {', '.join(absent)} "
            f"(it holds {shorten(state) or 'nothing else'})"
        )
    width, depth = state["norm.weight"].numel(), _count(state, "blocks.")
    patches = state["pos_embed"].numel() // width - 1
    grid = math.isqrt(max(0, patches))
    kernel = state["patch_embed.proj.weight"]
    if grid * grid != patches or kernel.dim() != 4 or depth == 0:
        raise InputError(
            f"weights '{source}': not the shapes of a vision transformer (depth {depth}, "
            f"patch kernel {list(kernel.shape)}, {patches} positions, which is no square)"
        )
    patch_size = kernel.shape[-1]
    config: dict[str, Any] = {
        "img_size": grid * patch_size,
        "patch_size": patch_size,
        "in_chans": kernel.shape[1],
        "embed_dim": width,
        "depth": depth,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "num_register_tokens": _registers(state, width),
        **_feed_forward(state, width),
    }
    if "blocks.0.ls1.gamma" not in state:
        config["layerscale"] = None
    if config["num_register_tokens"]:
        config |= {"interpolate_antialias": True, "interpolate_offset": 0.0}
    heads = {
        values["num_heads"]
        for values in ARCHITECTURES.values()
        if (values["embed_dim"], values["depth"]) == (width, depth)
    }
    return config | ({"num_heads": heads.pop()} if len(heads) == 1 else {})


def check_architecture(
    found: Mapping[str, Any],
    architecture: str,
    source: str,
    num_register_tokens: int | None = None,
) -> None:
    """Refuses weights that are not of a named architecture.

    Args:
        found: constructor arguments, as `infer_backbone` reads them.
        architecture: a key of `ARCHITECTURES`.
        source: what the message calls the weights.
        num_register_tokens: the number of registers they must have; None accepts any.

    Raises:
        InputError: names what differs.
    """
    sizes = ARCHITECTURES[architecture]
    expected = {"embed_dim": sizes["embed_dim"], "depth": sizes["depth"]}
    if num_register_tokens is not None:
        expected["num_register_tokens"] = num_register_tokens
    for dimension, size in expected.items():
        if found[dimension] != size:
            raise InputError(
                f"weights: '{source}' with {dimension} {found[dimension]}; accepted: "
                f"{architecture}'s, {size}"
            )


def infer_head(state: Mapping[str, Tensor], source: str, in_dim: int | None) -> dict[str, Any]:
    """Reads the constructor arguments of `NestedPrototypeHead` from a head's weights.

    Args:
        state: key -> tensor, without the head's own prefix.
        source: what messages call the weights.
        in_dim: width of the backbone; None takes the widest projection's input.

    Returns:
        constructor arguments; "projection" is "slice" when every projection sees its own slice,
        "full" when all see the whole width. An MLP of one layer has no "hidden_dim".

    Raises:
        InputError: the tensors are not those of a nested prototype head.
    """
    n_nested = _count(state, "matryoshka_projections.")
    projections = [state.get(f"matryoshka_projections.{i}.weight") for i in range(n_nested)]
    n_layers = _count(state, "mlps.0.")
    last = f"last_layers.{n_nested - 1}.weight_v"
    if not n_nested or not n_layers or last not in state or any(p is None for p in projections):
        raise InputError(f"weights '{source}': no nested prototype head, only {shorten(state)}")
    shapes = [tuple(p.shape) for p in projections if p is not None]
    sliced = all(rows == columns for rows, columns in shapes)
    in_dim = in_dim or max(columns for _, columns in shapes)
    prototypes, bottleneck = state[last].shape
    widest = shapes[-1][0]
    return {
        "in_dim": in_dim,
        "out_dim": prototypes * in_dim // widest,
        "nesting_dims": tuple(rows for rows, _ in shapes),
        "n_layers": n_layers,
        **({"hidden_dim": state["mlps.0.0.weight"].shape[0]} if n_layers > 1 else {}),
        "bottleneck_dim": bottleneck,
        "projection": "slice" if sliced else "full",
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Counts the different numbers that follow `prefix` in the keys."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in state if key.startswith(prefix)})


def _registers(state: Mapping[str, Tensor], width: int) -> int:
    registers = state.get("register_tokens")
    return 0 if registers is None else registers.numel() // width


def _feed_forward(state: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    fused = "blocks.0.mlp.w12.weight" in state
    name, layer = ("w3", "swiglufused") if fused else ("fc1", "mlp")
    weight = state.get(f"blocks.0.mlp.{name}.weight")
    if weight is None:  # the strict load names what is missing
        return {}
    hidden = weight.shape[1] if fused else weight.shape[0]
    ratio = hidden / width
    if fused:  # the hidden width is two thirds of ratio * width, rounded up to a multiple of 8
        standard = (int(int(4 * width) * 2 / 3) + 7) // 8 * 8
        ratio = 4.0 if hidden == standard else 1.5 * hidden / width
    return {
        "ffn_layer": layer,
        "mlp_ratio": ratio,
        "ffn_bias": f"blocks.0.mlp.{name}.bias" in state,
    }
