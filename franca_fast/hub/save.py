"""Writing a backbone: weights as safetensors, the architecture as JSON beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from franca_fast.files import atomic_path, make_durable, save_safetensors, write_json
from franca_fast.hub.weight_files import SAFETENSORS_SUFFIX
from franca_fast.models import VisionTransformer

ARCHITECTURE_FORMAT = "franca_fast.backbone/1"


def save_backbone(
    model: VisionTransformer,
    path_stem: str | os.PathLike[str],
    heads: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes `<stem>.safetensors` and `<stem>.json`, each complete or not at all.

    The JSON holds {"format": ..., "architecture": the constructor arguments}, so that
    `load_model(<stem>)` needs nothing else.

    Args:
        model: the backbone; its weights keep their dtypes.
        path_stem: path without suffix (a `.safetensors` suffix is accepted).
        heads: tensors to store beside the backbone, their keys as `load_head` expects them
            ("dino_head.", "ibot_head."); loading the backbone leaves them out.

    Returns:
        the path of the safetensors file.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> save_backbone(build_backbone("vit_nano"), "run/exported/teacher").name
        'teacher.safetensors'
    """
    weights, architecture = backbone_files(path_stem)
    state = model.state_dict() | dict(heads or {})
    tensors = {key: t.detach().contiguous().cpu() for key, t in state.items()}
    about = {"format": ARCHITECTURE_FORMAT, "architecture": model.config}
    with atomic_path(weights) as temporary:
        save_safetensors(tensors, temporary, {"format": "pt"})
        make_durable(temporary)  # so that both are on the disk before one of them has its name
        write_json(architecture, about)
    return weights


def weight_bytes(model: nn.Module, heads: Mapping[str, Tensor] | None = None) -> int:
    """Bytes of a model's weights, and of heads beside it, in a file."""
    tensors = (*model.state_dict().values(), *(heads or {}).values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def backbone_files(path_stem: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Returns the paths of the weights and of the architecture that belong to a stem."""
    stem = os.fspath(path_stem).removesuffix(SAFETENSORS_SUFFIX).removesuffix(".json")
    return Path(f"{stem}{SAFETENSORS_SUFFIX}"), Path(f"{stem}.json")
