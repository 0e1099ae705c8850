"""Building models from names and from files of weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from franca_fast.errors import InputError, did_you_mean
from franca_fast.hub.chunked_archive import is_archive
from franca_fast.hub.huggingface import (
    OTHER_NETWORKS,
    huggingface_weights,
    is_huggingface,
    read_huggingface,
)
from franca_fast.hub.infer import check_architecture, infer_backbone, infer_head
from franca_fast.hub.projector import PositionProjector
from franca_fast.hub.released import RELEASED_MODELS, RELEASED_NAMES, find_released
from franca_fast.hub.run_folder import RunNetwork, find_network, is_checkpoint, is_run, why_no_model
from franca_fast.hub.save import ARCHITECTURE_FORMAT, backbone_files
from franca_fast.hub.store import download_model
from franca_fast.hub.weight_files import (
    PROTOTYPE_HEADS,
    SAFETENSORS_SUFFIX,
    TORCH_SUFFIXES,
    head_keys,
    load_strict,
    normalize_backbone_keys,
    read_state_dict,
    shorten,
)
from franca_fast.models import NestedPrototypeHead, ProjectedBackbone, VisionTransformer
from franca_fast.models.architectures import ARCHITECTURES, build_backbone
from franca_fast.paths import why_unreadable

RANDOM = "random"
TIMM = "timm:"
HEADS_OF_A_RUN = "the heads of a run are in its checkpoints; accepted: a step, or newest"
_FILE_SUFFIXES = (SAFETENSORS_SUFFIX, ".json", *TORCH_SUFFIXES)


def load_model(
    name_or_path: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    img_size: int | None = None,
    rasa: PositionProjector | str | os.PathLike[str] | None = None,
    *,
    architecture: Mapping[str, Any] | None = None,
    checkpoint: int | str | None = None,
    network: str = "teacher",
) -> VisionTransformer:
    """Loads a backbone for inference; every key and shape must match.

    What `name_or_path` may be:

    - a `.safetensors` file with its `.json` beside it (either path, or their common stem), as
      `save_backbone` and the pretraining write them;
    - a run directory of `pretrain`, whose `exported/` folder is used, or the checkpoint that
      `checkpoint` names; or one of its `checkpoints/<step>` folders;
    - a folder in the Hugging Face layout of DINOv2 (see `export_huggingface`);
    - a `.pth` file as released (`{"teacher": ...}` or flat, any key spelling that
      `normalize_backbone_keys` knows), with the architecture read from the shapes; also inside a
      `.tar.gz` archive, whole or in parts;
    - a released name ("franca_vitb14", "dinov2_vits14_reg"), whose weights are downloaded once
      (see `download_model`), or an architecture ("vit_base"); `weights` then names a local file,
      or is "random" for an untrained network.

    Args:
        name_or_path: as above.
        weights: only with a name: the name of released weights ("IN21K_224"; None takes the first
            that `list_models` has), a local file, or "random".
        img_size: side in pixels of the images to use. Other sizes than the weights' own work by
            interpolating the position embedding when the model runs, so this only checks that
            the size is a multiple of the patch; with weights="random" it is the native size.
        rasa: removes absolute positions from the patch tokens: a released RASA file, what
            `PositionProjector.save` wrote, or a projector. All directions are removed at once;
            for a released file's own outputs pass
            `PositionProjector.from_files(file, compatible=True)`.
        architecture: constructor arguments of `VisionTransformer` that overrule those read from
            the file or the name, for instance {"num_heads": 4}, which no shape tells.
        checkpoint: with a run directory: the step of one of its checkpoints, or "newest" for the
            newest that is whole (a warning names a damaged newer one).
        network: of a checkpoint: "teacher", which is what a run exports, or "student".

    Returns:
        the model in evaluation mode, on the CPU, float32.

    Raises:
        InputError: unknown name, no such file, a file that cannot be read or is no file of weights
            (it says what it is), a download that fails, a damaged checkpoint, weights that do not
            fit or are not finite (keys named), or a run without a model yet (how far it is).

    Example:
        >>> model = load_model("vit_small", weights="random")
        >>> model(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 384])
    """
    name, overrides = os.fspath(name_or_path), dict(architecture or {})
    if name.startswith(TIMM):
        raise InputError(f"model: '{name}'; accepted: networks of franca_fast's; {OTHER_NETWORKS}")
    found = find_network(name, checkpoint, network)
    if found is None and (name in ARCHITECTURES or name in RELEASED_NAMES):
        model = _load_named(name, weights, img_size, overrides)
    elif weights is not None:
        raise InputError(
            f"name_or_path: '{name}'{did_you_mean(name, _known_names())}, with weights "
            f"'{os.fspath(weights)}'; accepted: the name of an architecture or a released model"
        )
    elif found is not None:
        model = load_network(found, overrides)
    elif is_huggingface(Path(name)):
        state, config = read_huggingface(Path(name))
        model = _build(config | overrides, state, name)
    else:
        model = _load_path(_find_file(name), overrides)
    check_img_size(img_size, model.patch_size)
    if rasa is not None:
        if not isinstance(rasa, PositionProjector):
            rasa = PositionProjector.from_files(rasa)
        model = rasa.attach(model)
    return model.eval()


def load_head(
    path: str | os.PathLike[str],
    head: str = "dino_head",
    *,
    in_dim: int | None = None,
    normalize: bool = False,
    checkpoint: int | str | None = None,
    network: str = "teacher",
) -> NestedPrototypeHead:
    """Loads one nested prototype head from a file or a run's checkpoint that holds it.

    Sizes and the kind of projection ("slice" or "full") are read from the shapes.

    Args:
        path: a weight file (see `read_state_dict`), a checkpoint's folder, or with `checkpoint` a
            run directory.
        head: "dino_head" (image-level) or "ibot_head" (patch-level).
        in_dim: width of the backbone, when the widest slice does not reach it.
        normalize: whether the bottleneck is L2-normalised, which no shape tells; of a checkpoint
            it is known.
        checkpoint: as in `load_model`.
        network: as in `load_model`.

    Returns:
        the head in evaluation mode, on the CPU, float32.

    Raises:
        InputError: no such head in the file, or keys or shapes that do not fit.

    Example:
        >>> head = NestedPrototypeHead(64, 512, hidden_dim=96, bottleneck_dim=24)
        >>> torch.save({f"ibot_head.{k}": t for k, t in head.state_dict().items()}, "head.pth")
        >>> load_head("head.pth", "ibot_head").out_dims
        (32, 64, 128, 256, 512)
    """
    if head not in PROTOTYPE_HEADS:
        raise InputError(f"head: '{head}'; accepted: {' or '.join(PROTOTYPE_HEADS)}")
    found = find_network(path, checkpoint, network)
    if found is not None:
        state, normalize = found.read(head), normalize or found.normalize
        others = found.heads
    else:
        if is_run(Path(path)):
            raise InputError(f"head: {head}, of the run '{os.fspath(path)}'; {HEADS_OF_A_RUN}")
        whole = read_state_dict(path)
        state = head_keys(whole, head)
        others = [name for name in PROTOTYPE_HEADS if head_keys(whole, name)]
    if not state:
        held = f" (it holds {' and '.join(others)})" if others else ""
        raise InputError(f"weights '{os.fspath(path)}': no keys that start with {head}.{held}")
    source = f"{os.fspath(path) if found is None else found.source}:{head}"
    with torch.device("meta"):
        module = NestedPrototypeHead(**infer_head(state, source, in_dim), normalize=normalize)
    load_strict(module, state, source)
    return module.eval()


def load_network(
    network: RunNetwork, overrides: Mapping[str, Any] | None = None
) -> VisionTransformer:
    """Loads the backbone of a checkpoint's network, as `load_model` does."""
    state = network.read("backbone")
    config = network.architecture(state) | dict(overrides or {})
    _check_num_heads(config, network.source)
    return _build(config, state, network.source).eval()


def find_weights(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of weights that `load_model(name_or_path)` reads; downloaded when it has to be.

    Raises:
        InputError: unknown name, or no such file.
    """
    name = os.fspath(name_or_path)
    if name in ARCHITECTURES or name in RELEASED_NAMES:
        return _weights_file(name, None)
    folder = Path(name)
    return huggingface_weights(folder) if is_huggingface(folder) else _find_file(name)


def check_img_size(img_size: int | None, patch_size: int) -> None:
    """Refuses an image size that is no positive multiple of the patch.

    Raises:
        InputError: names the nearest sizes that fit.
    """
    if img_size is None or (img_size > 0 and img_size % patch_size == 0):
        return
    below = max(1, img_size // patch_size) * patch_size
    raise InputError(
        f"img_size: {img_size}; accepted: a positive multiple of the patch size {patch_size}, "
        f"the nearest are {below} and {below + patch_size}"
    )


def _known_names() -> tuple[str, ...]:
    return (*RELEASED_NAMES, *ARCHITECTURES)


def _load_named(
    name: str,
    weights: str | os.PathLike[str] | None,
    img_size: int | None,
    overrides: dict[str, Any],
) -> VisionTransformer:
    released = find_released(name) if name in RELEASED_NAMES else None
    arch = released.architecture if released else name
    if weights == RANDOM:
        size = {} if img_size is None else {"img_size": img_size}
        return build_backbone(arch, **(size | overrides))
    file = _weights_file(name, weights)
    state = normalize_backbone_keys(read_state_dict(file))
    found = infer_backbone(state, os.fspath(file))
    registers = released.num_register_tokens if released else None
    check_architecture(found, arch, os.fspath(file), registers)
    return _build(ARCHITECTURES[arch] | found | overrides, state, os.fspath(file))


def _weights_file(name: str, weights: str | os.PathLike[str] | None) -> Path:
    """The file that `weights` stands for, given the name of a model."""
    known = [m.weights for m in RELEASED_MODELS if m.name == name and m.weights]
    if known and (weights is None or weights in known):
        return download_model(name, None if weights is None else os.fspath(weights))
    if weights is None:
        raise InputError(
            f"weights: None, for '{name}'; accepted: a file, or '{RANDOM}' for an untrained network"
        )
    if not is_archive(weights) and (reason := why_unreadable(weights)):
        given = os.fspath(weights)
        known = [] if os.path.lexists(weights) else [*known, RANDOM]
        reason = reason.removesuffix(" or folder")
        raise InputError(f"weights '{given}': {reason}{did_you_mean(given, known)}")
    return Path(weights)


def _find_file(name: str) -> Path:
    """Finds the weight file that a path means: itself, its stem, or a run's exported model."""
    path = Path(name)
    if os.path.isdir(path):
        return _exported(path)
    if os.path.isfile(path) and is_checkpoint(path.parent):
        raise InputError(
            f"model '{name}': a file of a checkpoint; accepted: its folder, '{path.parent}'"
        )
    if is_archive(path):
        return path
    weights, _ = backbone_files(name)
    if os.path.isfile(weights) and path.suffix not in TORCH_SUFFIXES:
        return weights
    if os.path.isfile(path):
        return path
    reason = why_unreadable(path)
    if os.path.lexists(path) or path.suffix in _FILE_SUFFIXES or os.sep in name:
        raise InputError(f"model '{name}': {reason}")
    raise InputError(
        f"model: unknown '{name}'{did_you_mean(name, _known_names())}; accepted: "
        f"{', '.join(_known_names())}, a weight file or a run directory"
    )


def _exported(path: Path) -> Path:
    """The model that a run exported, or another one in a folder."""
    folder = path / "exported" if os.path.isdir(path / "exported") else path
    if reason := why_unreadable(folder):
        raise InputError(f"model '{folder}': {reason}")
    # What a killed export leaves has a hidden name, or no architecture yet.
    found = [
        file
        for file in sorted(folder.glob(f"[!.]*{SAFETENSORS_SUFFIX}"))
        if not is_run(path) or os.path.isfile(backbone_files(file)[1])
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"model '{path}': {why_no_model(path)}")
    raise InputError(
        f"model: '{path}', a folder with {len(found)} exported models; accepted: one of "
        f"{shorten(file.name for file in found)}"
    )


def _load_path(path: Path, overrides: dict[str, Any]) -> VisionTransformer:
    state = normalize_backbone_keys(read_state_dict(path))
    if path.suffix == SAFETENSORS_SUFFIX:
        config = _read_architecture(backbone_files(path)[1])
    else:
        config = infer_backbone(state, str(path))
    config |= overrides
    _check_num_heads(config, str(path))
    return _build(config, state, str(path))


def _check_num_heads(config: Mapping[str, Any], source: str) -> None:
    if "num_heads" not in config:
        raise InputError(
            f"architecture: no num_heads for '{source}', width {config['embed_dim']} and depth "
            f"{config['depth']} is not one known architecture's; accepted: {{'num_heads': ...}}"
        )


def _read_architecture(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise InputError(
            f"architecture '{path}': no such file; it belongs beside the .safetensors file "
            "(or load the file as weights of a named architecture)"
        )
    if reason := why_unreadable(path) or ("a folder" if path.is_dir() else ""):
        raise InputError(f"architecture '{path}': {reason}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"architecture '{path}': no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != ARCHITECTURE_FORMAT:
        raise InputError(
            f"architecture: '{path}' of another format; accepted: '{ARCHITECTURE_FORMAT}'"
        )
    if not isinstance(content.get("architecture"), dict):
        raise InputError(f"architecture '{path}': lacks the dictionary \"architecture\"")
    return content["architecture"]


def _build(
    config: dict[str, Any], state: Mapping[str, torch.Tensor], source: str
) -> VisionTransformer:
    kind = ProjectedBackbone if "rasa_directions" in config else VisionTransformer
    try:
        # Without storage: the weights are about to be assigned, and a large random init is slow.
        with torch.device("meta"):
            model = kind(**config)
    except TypeError as error:
        raise InputError(f"architecture of '{source}': {error}") from error
    load_strict(model, state, source)
    return model
