"""Weight files: reading them without running code, and the one spelling of their keys."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.hub.chunked_archive import is_archive, unpacked
from franca_fast.hub.file_kinds import SAFETENSORS, TORCH, kind_of_file
from franca_fast.paths import utf8_path, why_unreadable

SAFETENSORS_SUFFIX = ".safetensors"
RELEASED_SUFFIX = ".pth"
TORCH_SUFFIXES = (RELEASED_SUFFIX, ".pt", ".bin")
PROTOTYPE_HEADS = ("dino_head", "ibot_head")
RASA_HEAD = "rasa_head"
HEADS = (*PROTOTYPE_HEADS, RASA_HEAD)
ROWS = "rows"  # of a checkpoint's file: {name: [first row, rows of the whole]} as metadata, JSON
_HEAD_PREFIXES = tuple(f"{head}." for head in HEADS)
_WRAPPER_PREFIXES = ("module.", "backbone.", "teacher.")
_UNREADABLE = "damaged, or not a file of PyTorch tensors"
_WRAPPER_ENTRIES = ("teacher", "model", "state_dict")
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the tensors of a weight file, running no code that it may hold.

    A `.pth`/`.pt` file is read with `torch.load(weights_only=True)` and may be flat or hold its
    tensors under "teacher" (as released), "model" or "state_dict". Keys are returned as spelt.

    Args:
        path: a `.safetensors`, `.pth`, `.pt` or `.bin` file, or a `.tar.gz` archive, whole or in
            parts (see `archive_parts`), that holds one `.pth` file.

    Returns:
        key -> tensor on the CPU, dtypes and shapes as stored.

    Raises:
        InputError: no such file, another format, damaged, it holds anything but tensors, or it is
            a part of a checkpoint that many ranks wrote.

    Example:
        >>> torch.save({"teacher": {"backbone.cls_token": torch.zeros(1, 1, 768)}}, "released.pth")
        >>> read_state_dict("released.pth")["backbone.cls_token"].shape
        torch.Size([1, 1, 768])
    """
    file = Path(path)
    if is_archive(file):
        with unpacked(file) as inner:
            return read_torch_file(inner, source=file)
    if reason := why_unreadable(file):
        raise InputError(f"weights '{file}': {reason}")
    if file.is_dir():
        raise InputError(f"weights: '{file}', a folder; accepted: a file")
    if file.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(file)
    if file.suffix not in TORCH_SUFFIXES:
        accepted = ", ".join((SAFETENSORS_SUFFIX, *TORCH_SUFFIXES, ".tar.gz"))
        kind = kind_of_file(file)
        described = "of unknown kind" + (f" ({kind})" if kind else "")
        raise InputError(f"weights: '{file}', {described}; accepted: {accepted}")
    return read_torch_file(file)


def open_safetensors(file: Path) -> Any:
    """Opens a file by `safetensors.safe_open`, which by itself takes no names but UTF-8.

    Raises:
        InputError: it cannot be read, or is no safetensors file; it says what it is.
    """
    from safetensors import SafetensorError, safe_open

    if reason := why_unreadable(file):
        raise InputError(f"weights '{file}': {reason}")
    try:
        with utf8_path(file) as readable:
            return safe_open(readable, framework="pt")
    except SafetensorError as error:
        reason = _no_weights(file, SAFETENSORS, f"damaged or no safetensors file ({error})")
        raise InputError(f"weights '{file}': {reason}") from error


def read_torch_file(
    file: Path, *, source: Path | None = None, mapped: bool = False
) -> dict[str, Tensor]:
    """Reads the tensors of a file that `torch.save` wrote, whatever its suffix.

    Args:
        file: the file; its checksums are verified where it has any.
        source: what messages call it, when that is another path.
        mapped: leave the tensors in the file (memory-mapped) instead of reading them all.

    Returns:
        key -> tensor on the CPU.

    Raises:
        InputError: damaged, or it holds anything but tensors.
    """
    shown = source or file
    zipped = zipfile.is_zipfile(file)
    if zipped:
        _verify_checksums(file, shown)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(
                file, map_location="cpu", weights_only=True, mmap=mapped and zipped
            )
    except pickle.UnpicklingError as error:
        asked_for = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked_for is None:
            raise InputError(
                f"weights '{shown}': {_no_weights(file, TORCH, _UNREADABLE)}"
            ) from error
        raise InputError(
            f"weights '{shown}': refused, the file asks for the Python object "
            f"'{asked_for.group(1)}'; only tensors are loaded and nothing in it was run"
        ) from error
    except OSError as error:
        raise InputError(f"weights '{shown}': {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise InputError(f"weights '{shown}': {_no_weights(file, TORCH, _UNREADABLE)}") from error
    return _tensors_of(content, shown)


def normalize_backbone_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the backbone's keys the one spelling that `VisionTransformer` uses.

    Removes the prefixes `module.`, `backbone.` and `teacher.` (in any order and depth), turns the
    chunked `blocks.<chunk>.<index>.` into `blocks.<index>.`, and leaves out the heads that may
    stand beside the backbone (`dino_head.`, `ibot_head.`, `rasa_head.`). Every other key stays, so
    that a strict load can name it.

    Args:
        state: key -> tensor, as read from a file.

    Returns:
        normalised key -> the same tensor.

    Raises:
        InputError: two keys become the same one.

    Example:
        >>> list(normalize_backbone_keys({"module.backbone.blocks.1.7.ls1.gamma": torch.ones(4)}))
        ['blocks.7.ls1.gamma']
    """
    normalized: dict[str, Tensor] = {}
    spelt: dict[str, str] = {}
    for key, tensor in state.items():
        name = _without_wrappers(key)
        if name.startswith(_HEAD_PREFIXES):
            continue
        name = _CHUNKED_BLOCK.sub(r"blocks.\1.", name)
        if name in normalized:
            raise InputError(f"weights: '{spelt[name]}' and '{key}' are both '{name}'")
        normalized[name], spelt[name] = tensor, key
    return normalized


def head_keys(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Returns the entries of one of `HEADS`, without its prefix."""
    prefix = f"{head}."
    names = {_without_wrappers(key): tensor for key, tensor in state.items()}
    return {name[len(prefix) :]: t for name, t in names.items() if name.startswith(prefix)}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fills `module` with `state`; every key and every shape must match.

    The module may have been built on the meta device. Tensors become float32.

    Args:
        module: what to fill; nothing in it changes when this raises.
        state: key -> tensor with the module's own key names.
        source: what the message calls the weights, for instance the path.

    Raises:
        InputError: names the missing and unexpected keys and the wrong shapes, or the keys with
            values that are not finite.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    faults = _mismatches(expected, state)
    if faults:
        raise InputError(f"weights '{source}' do not fit: {'; '.join(faults)}")
    tensors = {key: tensor.float() for key, tensor in state.items()}
    check_finite(tensors, source)
    module.load_state_dict(tensors, strict=True, assign=True)


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuses weights with values that are not finite, which make every feature NaN.

    Args:
        state: key -> tensor of any dtype.
        source: what the message calls the weights.

    Raises:
        InputError: names the keys and counts the values.
    """
    wrong = []
    for key, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Both ends are NaN where any value is; unlike isfinite it needs no second tensor.
        if not all(torch.isfinite(end) for end in tensor.detach().float().aminmax()):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            wrong.append(f"{key} ({count} of {tensor.numel()})")
    if wrong:
        raise InputError(
            f"weights '{source}': NaN or infinite values in {len(wrong)} tensors: "
            f"{shorten(wrong)}; accepted: finite numbers, as an earlier checkpoint may have them "
            "(torch.nan_to_num replaces them where the file is still wanted)"
        )


def shorten(names: Iterable[str], limit: int = 4) -> str:
    """Joins the first names with commas and counts the rest: 'a, b, c, d and 8 more'."""
    listed = list(names)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _mismatches(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} is {list(tensor.shape)} instead of {list(expected[key])}"
        for key, tensor in state.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    kinds = (("missing keys", missing), ("unexpected keys", unexpected), ("wrong shapes", wrong))
    return [f"{len(names)} {kind}: {shorten(names)}" for kind, names in kinds if names]


def _without_wrappers(key: str) -> str:
    while key.startswith(_WRAPPER_PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    opened = open_safetensors(file)
    parts = (opened.metadata() or {}).get(ROWS, "")
    if any(json.dumps(key) in parts for key in opened.keys()):  # noqa: SIM118
        raise InputError(
            f"weights '{file}': some rows of the tensors of a checkpoint; accepted: its folder, "
            f"'{file.parent}'"
        )
    return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _no_weights(file: Path, own: str, why: str) -> str:
    """Says of a file that could not be read what it is, if it is not what its name promises."""
    kind = kind_of_file(file)
    return why if kind in (None, own) else f"{why}: it is {kind}"


def _verify_checksums(file: Path, shown: Path) -> None:
    """Compares the stored checksums, which torch itself does not."""
    try:
        with zipfile.ZipFile(file) as archive:
            if all(member.CRC == 0 for member in archive.infolist()):
                return  # written without checksums
            damaged = archive.testzip()
    # A damaged directory may claim an encrypted member, or a compression that zipfile lacks: both
    # are its RuntimeErrors.
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise InputError(f"weights '{shown}': {_UNREADABLE}") from error
    if damaged is not None:
        raise InputError(f"weights '{shown}': damaged, '{damaged}' in it fails its checksum")


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    for entry in _WRAPPER_ENTRIES:
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"weights '{file}': holds no dictionary of tensors")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(f"weights '{file}': not tensors: {shorten(others)}")
    return {str(key): tensor for key, tensor in content.items()}
