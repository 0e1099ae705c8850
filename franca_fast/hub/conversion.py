"""From any spelling of weights to ours, and from ours to that of the released files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_file, save_torch
from franca_fast.hub.infer import infer_backbone
from franca_fast.hub.load import HEADS_OF_A_RUN, find_weights, load_model, load_network
from franca_fast.hub.run_folder import RunNetwork, find_network, is_run
from franca_fast.hub.save import backbone_files, save_backbone, weight_bytes
from franca_fast.hub.weight_files import (
    HEADS,
    RELEASED_SUFFIX,
    SAFETENSORS_SUFFIX,
    check_finite,
    head_keys,
    read_state_dict,
    shorten,
)
from franca_fast.models import ProjectedBackbone, VisionTransformer


class Converted(NamedTuple):
    """What `convert` wrote.

    Attributes:
        path: the file of weights.
        heads: names of the heads in it.
        not_stored: arguments of the architecture that a `.pth` file cannot tell by its shapes; to
            be given as `load_model(path, architecture=...)`.
    """

    path: Path
    heads: tuple[str, ...]
    not_stored: dict[str, Any]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    keep_heads: bool = False,
    architecture: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    checkpoint: int | str | None = None,
    network: str = "teacher",
) -> Converted:
    """Writes a backbone in our form or in that of the released files.

    Args:
        source: whatever `load_model` takes: a file in any spelling, an archive, a folder, a run's
            checkpoint, a released name.
        destination: `.safetensors`, with the architecture as JSON beside it; or `.pth`, as
            released: `{"teacher": {"backbone.<key>": tensor}}`.
        keep_heads: also take the heads that stand beside the backbone (`dino_head.`, `ibot_head.`,
            `rasa_head.`); `load_head` reads them from either form.
        architecture: constructor arguments that no shape tells, such as {"num_heads": 4}.
        overwrite: whether the files at `destination` may exist.
        checkpoint: as in `load_model`: of a run, a step or "newest".
        network: as in `load_model`: of a checkpoint, "teacher" or "student".

    Returns:
        what was written.

    Raises:
        InputError: weights that do not load, no heads to keep, or a destination that is in use or
            of another kind.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> _ = save_backbone(build_backbone("vit_nano"), "nano")
        >>> convert("nano", "nano.pth").path.name
        'nano.pth'
    """
    target = check_file(destination, overwrite=overwrite)
    if target.suffix == SAFETENSORS_SUFFIX:
        check_file(backbone_files(target)[1], overwrite=overwrite)
    elif target.suffix != RELEASED_SUFFIX:
        raise InputError(
            f"output: '{target}'; accepted: a name that ends in {SAFETENSORS_SUFFIX} or "
            f"{RELEASED_SUFFIX}"
        )
    found = find_network(source, checkpoint, network)
    if found is None:
        model = load_model(source, architecture=architecture)
    else:
        model = load_network(found, architecture)
    heads = _read_heads(source, found) if keep_heads else {}
    names = tuple(dict.fromkeys(key.split(".", 1)[0] for key in heads))
    check_file(target, overwrite=overwrite, n_bytes=weight_bytes(model, heads))
    if target.suffix == SAFETENSORS_SUFFIX:
        return Converted(save_backbone(model, target, heads), names, {})
    if isinstance(model, ProjectedBackbone):
        raise InputError(
            f"output: '{target}', which has no place for a removal of positions as '{source}' has "
            f"it; accepted: {SAFETENSORS_SUFFIX}"
        )
    backbone = {f"backbone.{key}": t.contiguous() for key, t in model.state_dict().items()}
    with atomic_path(target) as temporary:
        save_torch({"teacher": backbone | heads}, temporary)
    return Converted(target, names, _not_in_shapes(model))


def _read_heads(source: str | os.PathLike[str], network: RunNetwork | None) -> dict[str, Tensor]:
    if network is None:
        state = read_state_dict(find_weights(source))
        found = {head: head_keys(state, head) for head in HEADS}
    else:
        found = {head: network.read(head) for head in network.heads}
    heads = {
        f"{head}.{key}": tensor.contiguous()
        for head, tensors in found.items()
        for key, tensor in tensors.items()
    }
    if not heads:
        why = f"; {HEADS_OF_A_RUN}" if is_run(Path(source)) else f" ({shorten(HEADS)})"
        raise InputError(f"weights '{source}': no heads to keep{why}")
    check_finite(heads, os.fspath(source))
    return heads


def _not_in_shapes(model: VisionTransformer) -> dict[str, Any]:
    """What `load_model` would not find again in a file of weights alone."""
    found = infer_backbone(model.state_dict(), "model")
    wanted = ("num_heads", "interpolate_antialias", "interpolate_offset")
    defaults = {"num_heads": None, "interpolate_antialias": False, "interpolate_offset": 0.1}
    return {
        key: model.config[key]
        for key in wanted
        if found.get(key, defaults[key]) != model.config[key]
    }
