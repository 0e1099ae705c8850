"""The Hugging Face layout of DINOv2: a folder that transformers' AutoModel loads, out and in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from franca_fast.data.settings import CropSettings
from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_folder, save_safetensors, write_json
from franca_fast.hub.infer import infer_backbone
from franca_fast.hub.weight_files import read_state_dict
from franca_fast.models import ProjectedBackbone, VisionTransformer

CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
_CODE_FILE = Path(__file__).parent / "remote_code" / "modeling_franca.py"
FILES = (CONFIG_FILE, _WEIGHTS_FILE, PROCESSOR_FILE, _CODE_FILE.name)
"""Names of what a folder of this layout can hold."""
_READ_TYPES = ("dinov2", "dinov2_with_registers")
MODEL_TYPES = (*_READ_TYPES, "franca", "franca_with_registers")
"""Types of folders whose network is one of this package's; the last two remove positions."""
OTHER_NETWORKS = (
    "networks of timm and other types of Hugging Face are for embed, eval, visualize, rasa fit and "
    "rasa report (franca_fast.evaluation.load_encoder)"
)
"""What is said where a network of this package is needed."""
_BICUBIC = 3  # Pillow's number
# What stands for each other in the keys, ours first.
_NAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "encoder.layer."),
    (".attn.proj.", ".attention.output.dense."),
    (".ls1.gamma", ".layer_scale1.lambda1"),
    (".ls2.gamma", ".layer_scale2.lambda1"),
    (".mlp.w12.", ".mlp.weights_in."),
    (".mlp.w3.", ".mlp.weights_out."),
)
_FINAL_NORM = ("norm.", "layernorm.")
_QKV, _SPLIT = ".attn.qkv.", ".attention.attention."
_THREE = ("query", "key", "value")


def export_huggingface(
    model: VisionTransformer,
    folder: str | os.PathLike[str],
    *,
    img_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder that transformers loads as Dinov2Model or Dinov2WithRegistersModel.

    Outputs equal ours. One difference is not a matter of weights: at other image sizes than that
    of the position embedding, transformers interpolates it to a target size (with antialiasing
    when the model has registers). A model whose own interpolation is that one (DINOv2's with
    registers) is equal at every size. For any other (Franca's and DINOv2's without registers
    scale by a factor with an offset of 0.1) there are two ways to exact outputs:

    - `img_size`: the position embedding is interpolated to this size once, our way, and outputs
      are exact at this size;
    - `AutoModel.from_pretrained(folder, trust_remote_code=True)` runs `modeling_franca.py`, which
      is written into the folder, and is exact at every size, squares or not.

    Without either, patch features at other sizes differ slightly. A model that removes positions
    (`load_model(..., rasa=...)`) needs the second way; without it transformers refuses the folder.

    Args:
        model: the backbone.
        folder: where to write; made when missing.
        img_size: side in pixels of the position embedding to store; None keeps the model's own.
        overwrite: whether the folder may hold files.

    Returns:
        the folder.

    Raises:
        InputError: the folder is in use, or transformers' Dinov2 has no place for an option of the
            architecture.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> folder = export_huggingface(build_backbone("vit_nano", img_size=28), "nano-hf")
        >>> sorted(file.name for file in folder.iterdir())[:2]
        ['config.json', 'model.safetensors']
    """
    n_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())  # float32
    target = check_folder(folder, overwrite=overwrite, files=FILES, n_bytes=n_bytes)
    size = model.config["img_size"] if img_size is None else img_size
    config = huggingface_config(model, size)
    state = huggingface_state(model, size)
    # The configuration last: without it the folder is no model yet.
    (target / CONFIG_FILE).unlink(missing_ok=True)
    with atomic_path(target / _WEIGHTS_FILE) as temporary:
        save_safetensors(state, temporary, {"format": "pt"})
    write_json(target / PROCESSOR_FILE, _processor(size))
    if "auto_map" in config:
        with atomic_path(target / _CODE_FILE.name) as temporary:
            shutil.copyfile(_CODE_FILE, temporary)
    write_json(target / CONFIG_FILE, config)
    return target


def huggingface_config(model: VisionTransformer, img_size: int) -> dict[str, Any]:
    """The content of `config.json` for a backbone.

    Raises:
        InputError: transformers' Dinov2 has no place for an option of the architecture.
    """
    ours = model.config
    ratio = float(ours["mlp_ratio"])
    if not ratio.is_integer():
        raise InputError(f"mlp_ratio: {ratio}; accepted: whole numbers in the Hugging Face layout")
    with_registers = model.num_register_tokens > 0
    removed = isinstance(model, ProjectedBackbone)
    suffix = "WithRegisters" if with_registers else ""
    config: dict[str, Any] = {
        "architectures": [f"Dinov2{suffix}Model"],
        "model_type": "dinov2_with_registers" if with_registers else "dinov2",
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "mlp_ratio": int(ratio),
        "hidden_act": "gelu",
        "image_size": img_size,
        "patch_size": model.patch_size,
        "num_channels": ours["in_chans"],
        "qkv_bias": ours["qkv_bias"],
        "layer_norm_eps": 1e-6,
        "layerscale_value": float(ours["layerscale"] or 1.0),
        "use_swiglu_ffn": ours["ffn_layer"] != "mlp",
        "torch_dtype": "float32",
        # What transformers does not read, but modeling_franca.py and franca_fast do.
        "interpolate_offset": model.interpolate_offset,
        "interpolate_antialias": model.interpolate_antialias,
        "position_removal": removed,
    }
    if with_registers:
        config["num_register_tokens"] = model.num_register_tokens
    own_interpolation = bool(model.interpolate_offset) or (
        model.interpolate_antialias != with_registers
    )
    if own_interpolation or removed:
        code = _CODE_FILE.stem
        config["auto_map"] = {"AutoModel": f"{code}.Franca{suffix}Model"}
        if removed:  # nobody shall load it without its map by mistake
            config["model_type"] = "franca_with_registers" if with_registers else "franca"
            config["auto_map"]["AutoConfig"] = f"{code}.Franca{suffix}Config"
    return config


def huggingface_state(model: VisionTransformer, img_size: int) -> dict[str, Tensor]:
    """The weights of a backbone under the keys of transformers' Dinov2.

    Biases and LayerScale factors that the architecture lacks become zeros and ones.
    """
    position = model.position_embedding(img_size, img_size)
    state: dict[str, Tensor] = {}
    for key, tensor in (model.state_dict() | {"pos_embed": position}).items():
        if key.startswith("rasa."):
            continue
        if _QKV in key:
            stem = key.replace("blocks.", "encoder.layer.", 1)
            for name, part in zip(_THREE, tensor.chunk(3), strict=True):
                state[stem.replace(_QKV, f"{_SPLIT}{name}.")] = part
        else:
            state[_translate(key, 0)] = tensor
    width = model.embed_dim
    fused = model.config["ffn_layer"] != "mlp"
    hidden_layer = "weights_in" if fused else "fc1"
    for i in range(model.depth):
        layer = f"encoder.layer.{i}"
        hidden = state[f"{layer}.mlp.{hidden_layer}.weight"].shape[0]
        zeros = {
            "attention.output.dense.bias": width,
            f"mlp.{hidden_layer}.bias": hidden,
            f"mlp.{'weights_out' if fused else 'fc2'}.bias": width,
        }
        for name, size in zeros.items():
            state.setdefault(f"{layer}.{name}", torch.zeros(size))
        for name in ("layer_scale1", "layer_scale2"):
            state.setdefault(f"{layer}.{name}.lambda1", torch.ones(width))
    if isinstance(model, ProjectedBackbone):
        state["position_removal.weight"] = model.rasa.matrix()
    return {key: t.detach().float().cpu().contiguous().clone() for key, t in state.items()}


def huggingface_weights(folder: Path) -> Path:
    """The file of weights in a folder of the Hugging Face layout."""
    return folder / _WEIGHTS_FILE


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is a model in the Hugging Face layout."""
    files = (folder / CONFIG_FILE, huggingface_weights(folder))
    return all(os.path.isfile(file) for file in files)


def read_huggingface(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a Dinov2 folder of Hugging Face's; no code in it is run.

    Positions are interpolated as transformers does, unless the folder says otherwise as ours do.

    Returns:
        the weights under our keys, and the arguments of `VisionTransformer`.

    Raises:
        InputError: another kind of model, or one whose positions are removed.
    """
    config = _read_config(folder)
    registers = int(config.get("num_register_tokens", 0))
    theirs = read_state_dict(huggingface_weights(folder))
    state: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        if f"{_SPLIT}query." in key:
            parts = [theirs.get(key.replace("query", name)) for name in _THREE]
            missing = [n for n, part in zip(_THREE, parts, strict=True) if part is None]
            if missing:
                raise InputError(f"weights '{folder}': {key} has no {', '.join(missing)}")
            name = key.replace(f"{_SPLIT}query.", _QKV).replace("encoder.layer.", "blocks.", 1)
            state[name] = torch.cat([part for part in parts if part is not None])
        elif _SPLIT not in key:
            state[_translate(key, 1)] = tensor
    found = infer_backbone(state, str(folder))
    return state, found | {
        "num_heads": int(config["num_attention_heads"]),
        "interpolate_offset": float(config.get("interpolate_offset", 0.0)),
        "interpolate_antialias": bool(config.get("interpolate_antialias", registers > 0)),
    }


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{folder / CONFIG_FILE}': no JSON ({error})") from error
    kind = config.get("model_type") if isinstance(config, Mapping) else None
    if kind not in _READ_TYPES or "num_attention_heads" not in config:
        hint = "" if kind in MODEL_TYPES else f"; {OTHER_NETWORKS}"
        raise InputError(
            f"model: '{folder}' of type '{kind}'; accepted: {' or '.join(_READ_TYPES)}{hint}"
        )
    return dict(config)


def _translate(key: str, given: int) -> str:
    """A key in the other spelling; `given` is 0 for ours and 1 for theirs."""
    if key.startswith(_FINAL_NORM[given]):
        return key.replace(_FINAL_NORM[given], _FINAL_NORM[1 - given], 1)
    for names in _NAMES:
        key = key.replace(names[given], names[1 - given], 1)
    return key


def _processor(img_size: int) -> dict[str, Any]:
    """What `eval_transform` does, for transformers' image processor.

    Where the longer side has 3, 7, 11, ... pixels more than the crop, transformers lets the crop
    begin one pixel before torchvision and `eval_transform`: it rounds halves down.
    """
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": img_size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": img_size, "width": img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CropSettings.mean),
        "image_std": list(CropSettings.std),
    }
