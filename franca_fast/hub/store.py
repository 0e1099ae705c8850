"""The cache of released weights: what is there, and fetching what is not."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from franca_fast.errors import InputError
from franca_fast.files import CACHE_VARIABLE, cache_folder
from franca_fast.hub.chunked_archive import NoSpaceError, unpack
from franca_fast.hub.download import (
    GoneError,
    download,
    file_sha256,
    forget_download,
    locked,
    record_sha256,
    recorded_sha256,
)
from franca_fast.hub.infer import check_architecture, infer_backbone
from franca_fast.hub.projector_files import LAST_LAYER
from franca_fast.hub.released import RELEASED_MODELS, ModelInfo, find_released
from franca_fast.hub.weight_files import normalize_backbone_keys, read_torch_file
from franca_fast.paths import why_unreadable

MIRROR_VARIABLE = "FRANCA_FAST_MIRROR"


def cached_path(model: ModelInfo, *, rasa: bool = False) -> Path:
    """Where the cache keeps the weights of a released model, or its RASA file.

    Raises:
        InputError: none was released.
    """
    name = model.rasa_file if rasa else model.cached_file
    if name is None:
        raise InputError(
            f"no {'RASA file' if rasa else 'weights'} was released for {model.name} "
            f"({model.weights})"
        )
    return cache_folder() / name


def download_model(name: str, weights: str | None = None, *, rasa: bool = False) -> Path:
    """Returns the local file of released weights, and downloads it when the cache lacks it.

    A download goes on where an earlier one stopped, is checked (length, checksums, and that the
    file holds the tensors of its architecture) and then moved into the cache; of several processes
    one downloads and the others wait. FRANCA_FAST_MIRROR names another address that has the files
    under their own names.

    Args:
        name: a released name, see `list_models`.
        weights: name of the weights; None takes the first of that name.
        rasa: the file for the removal of absolute spatial attributes instead of the weights.

    Raises:
        InputError: unknown name, no connection, too little space, or a file that is not what it
            should be; the message says where to put the file by hand.

    Example:
        >>> download_model("franca_vitb14", "IN22K")
        Traceback (most recent call last):
        ...
        franca_fast.errors.InputError: weights: unknown 'IN22K' of franca_vitb14 (did you mean \
'IN21K'?); accepted: IN21K, IN21K_518, IN21K_224, DINOV2_IN21K, DINOV2_IN21K_518
    """
    model = find_released(name, weights)
    target = cached_path(model, rasa=rasa)
    if os.path.isfile(target):
        return target
    if os.path.lexists(target):
        reason = why_unreadable(target) or "a folder"
        raise InputError(f"cached weights '{target}': {reason}; remove or mend it")
    try:
        with locked(target):
            return target if target.is_file() else _fetch(model, target, rasa)
    except InputError as error:
        files = [target.name] if rasa else list(model.files)
        withdrawn = isinstance(error, GoneError) and model.withdrawn
        why = f"; {model.weights} was withdrawn upstream and is listed no more" if withdrawn else ""
        raise InputError(
            f"{name} could not be downloaded: {error}{why}. By hand: put {', '.join(files)} from "
            f"{_folder(model)} into '{target.parent}' ({CACHE_VARIABLE} names another folder), or "
            "pass the path as weights="
        ) from error


def verify_cache() -> list[tuple[Path, bool | None]]:
    """Compares each cached file with the hash that was recorded when it was downloaded.

    Returns:
        pairs of a file and whether it is unchanged; None where no hash was recorded.
    """
    files = [cached_path(model) for model in RELEASED_MODELS]
    files += [cached_path(model, rasa=True) for model in RELEASED_MODELS if model.rasa]
    verdicts: list[tuple[Path, bool | None]] = []
    for file in files:
        if file.is_file():
            recorded = recorded_sha256(file)
            verdicts.append((file, None if recorded is None else recorded == file_sha256(file)))
    return verdicts


def _fetch(model: ModelInfo, target: Path, rasa: bool) -> Path:
    folder = _folder(model)
    if rasa:
        return download(f"{folder}/{target.name}", target, check=_check_rasa)
    if len(model.files) == 1:
        check = partial(_check_backbone, model=model)
        return download(f"{folder}/{model.file}", target, check=check)
    parts = [target.with_name(name) for name in model.files]
    for part in parts:
        download(f"{folder}/{part.name}", part)
    temporary = target.with_name(f".{target.name}.unpacked")
    try:
        unpack(parts, temporary)
        _check_backbone(temporary, model)
        record_sha256(temporary, target)
        temporary.replace(target)
    except NoSpaceError:  # nothing is wrong with the parts
        raise
    except InputError:
        _forget(parts)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _forget(parts)
    return target


def _forget(parts: list[Path]) -> None:
    for part in parts:
        forget_download(part)


def _folder(model: ModelInfo) -> str:
    return (os.environ.get(MIRROR_VARIABLE) or str(model.folder)).rstrip("/")


def _check_backbone(path: Path, model: ModelInfo) -> None:
    """Refuses a file that does not hold the tensors of a model, without reading them all."""
    found = infer_backbone(normalize_backbone_keys(read_torch_file(path, mapped=True)), path.name)
    check_architecture(found, model.architecture, path.name, model.num_register_tokens)


def _check_rasa(path: Path) -> None:
    if LAST_LAYER not in read_torch_file(path, mapped=True):
        raise InputError(f"'{path.name}' lacks {LAST_LAYER}, so it is no RASA file")
