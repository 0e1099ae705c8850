"""Names and files of weights: foreign and our own formats in, our own out."""

from __future__ import annotations

from franca_fast.hub.conversion import Converted, convert
from franca_fast.hub.export import (
    export_matrix,
    export_onnx,
    export_safetensors,
    export_torch,
)
from franca_fast.hub.huggingface import export_huggingface
from franca_fast.hub.load import check_img_size, load_head, load_model
from franca_fast.hub.released import ModelInfo, list_models
from franca_fast.hub.save import save_backbone
from franca_fast.hub.store import cache_folder, download_model
from franca_fast.hub.weight_files import normalize_backbone_keys, read_state_dict

__all__ = [
    "Converted",
    "ModelInfo",
    "cache_folder",
    "check_img_size",
    "convert",
    "download_model",
    "export_huggingface",
    "export_matrix",
    "export_onnx",
    "export_safetensors",
    "export_torch",
    "list_models",
    "load_head",
    "load_model",
    "normalize_backbone_keys",
    "read_state_dict",
    "save_backbone",
]
