"""Backbones for use elsewhere; as ONNX or torch.export programs without this package."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.data.settings import CropSettings
from franca_fast.errors import FrancaError, InputError
from franca_fast.files import (
    atomic_path,
    check_file,
    check_folder,
    folder_beside,
    save_safetensors,
    torch_file,
)
from franca_fast.hub.huggingface import FILES
from franca_fast.hub.save import backbone_files, save_backbone, weight_bytes
from franca_fast.hub.weight_files import SAFETENSORS_SUFFIX
from franca_fast.models import ProjectedBackbone, VisionTransformer
from franca_fast.paths import behind_links, utf8_path

INPUT, OUTPUTS = "image", ("cls_token", "patch_tokens")
_TOLERANCE = 1e-4  # of the largest feature, or absolute where that is below 1
_INLINE_LIMIT = 1_900_000_000  # bytes; an ONNX file itself holds less than 2 GiB
_SUFFIXES = {
    "safetensors": SAFETENSORS_SUFFIX,
    "matrix": SAFETENSORS_SUFFIX,
    "onnx": ".onnx",
    "torch-export": ".pt2",
}
_Runner = Callable[[Tensor], Mapping[str, Tensor]]


class ImageFeatures(nn.Module):
    """A backbone for images of one size, with its position embedding computed ahead.

    Maps images [B, C, H, W] to `{"cls_token": [B, d], "patch_tokens": [B, n, d]}`, after the final
    LayerNorm and, where the model removes positions, after that. A copy of the model on the CPU in
    float32, in evaluation mode.

    Args:
        model: the backbone; not changed.
        size: height and width in pixels, multiples of the patch.

    Raises:
        InputError: a size that does not fit the patch.
    """

    def __init__(self, model: VisionTransformer, size: tuple[int, int]) -> None:
        super().__init__()
        patch = model.patch_size
        if any(side < patch or side % patch for side in size):
            raise InputError(
                f"img_size: {size[0]} x {size[1]}; accepted: multiples of the patch size {patch}"
            )
        backbone = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        position = backbone.position_embedding(*size)
        backbone.pos_embed = nn.Parameter(position, requires_grad=False)
        # Interpolation differs between runtimes in its last digits, and is the same every time.
        backbone.position_embedding = (  # type: ignore[method-assign]
            lambda height, width: backbone.pos_embed
        )
        self.backbone = backbone

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Features of a batch of images."""
        features = self.backbone.forward_features(image)
        return dict(
            zip(OUTPUTS, (features["x_norm_clstoken"], features["x_norm_patchtokens"]), strict=True)
        )


def export_safetensors(
    model: VisionTransformer, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Writes the weights as safetensors and the architecture as JSON beside them.

    `load_model(path)` restores the model, with its removal of positions where it has one. See
    `save_backbone`, which this is with a check of what is there already.

    Args:
        model: the backbone.
        path: the file to write, ending in `.safetensors`.
        overwrite: whether the files may exist.

    Returns:
        the path.

    Raises:
        InputError: a path that is in use or of another kind.
    """
    check_export(path, "safetensors", overwrite=overwrite, n_bytes=weight_bytes(model))
    return save_backbone(model, path)


def export_onnx(
    model: VisionTransformer,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an ONNX file with input "image" and outputs "cls_token" and "patch_tokens".

    The image size is fixed, and the position embedding in the file is the one for it. Height,
    width, patch size and the mean and deviation that images are normalised with stand in the
    file's metadata. Before the file is put in place its outputs are compared with the model's when
    onnxruntime is installed. Weights above 1.9 GB go to `<path>.data`, which belongs to the file.

    Args:
        model: the backbone, with or without removal of positions.
        path: the file to write, ending in `.onnx`.
        img_size: side, or height and width, in pixels; None takes the model's own.
        batch_size: images in a batch; None leaves it open.
        overwrite: whether the file may exist.

    Returns:
        the path.

    Raises:
        InputError: wrong arguments, or the packages for it are not installed.
        FrancaError: the outputs differ by more than 1e-4; nothing is written.
    """
    target, data = Path(path), f"{os.fspath(path)}.data"
    check_export(path, "onnx", overwrite=overwrite)
    features, size, n_images = _prepare(model, img_size, batch_size)
    n_bytes = weight_bytes(features)
    apart = n_bytes > _INLINE_LIMIT
    check_file(path, overwrite=overwrite, n_bytes=n_bytes)
    if apart:
        check_file(data, overwrite=overwrite)
    example = _images(model, size, n_images)
    with _quietly():
        program = torch.onnx.export(
            features,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=_shapes(batch_size),
            verbose=False,
        )
    assert program is not None  # with dynamo
    program.model.metadata_props.update({k: json.dumps(v) for k, v in _facts(model, size).items()})
    with folder_beside(path) as folder:
        file = folder / target.name
        program.save(str(file), external_data=apart)
        run = _onnx_runner(file)
        if run is not None:
            _compare(run, features, _images(model, size, n_images, seed=1), target)
        if apart:  # the file that is there would not fit to the new data
            behind_links(path).unlink(missing_ok=True)
        for written in sorted(folder.iterdir(), key=lambda f: f.name == target.name):
            with atomic_path(path if written.name == target.name else data) as temporary:
                shutil.move(written, temporary)
    return target


def export_torch(
    model: VisionTransformer,
    path: str | os.PathLike[str],
    *,
    img_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a `torch.export` program that gives a dict of "cls_token" and "patch_tokens".

    `torch.export.load(path).module()` runs it without this package. What `export_onnx` puts into
    its metadata is in the extra file "franca_fast.json" of the archive. The rest, arguments and
    errors too, is as there; `path` ends in `.pt2`.
    """
    target = Path(path)
    check_export(path, "torch-export", overwrite=overwrite)
    features, size, n_images = _prepare(model, img_size, batch_size)
    check_file(path, overwrite=overwrite, n_bytes=weight_bytes(features))
    example = _images(model, size, n_images)
    with _quietly():
        program = torch.export.export(features, (example,), dynamic_shapes=_shapes(batch_size))
    with atomic_path(path) as temporary, _quietly():
        facts = {"franca_fast.json": json.dumps(_facts(model, size))}
        with torch_file(temporary) as file:
            torch.export.save(program, file, extra_files=facts)
        with utf8_path(temporary) as readable:
            loaded = torch.export.load(readable).module()
        _compare(loaded, features, _images(model, size, n_images, seed=1), target)
    return target


def export_matrix(
    model: VisionTransformer, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Writes the removal of positions as one matrix, for use behind any copy of the backbone.

    The safetensors file holds "matrix", float32 [d, d]: cleaned tokens are `tokens @ matrix.T`.

    Args:
        model: a backbone that removes positions (`load_model(..., rasa=...)`).
        path: the file to write, ending in `.safetensors`.
        overwrite: whether the file may exist.

    Returns:
        the path.

    Raises:
        InputError: wrong arguments, or the model removes no positions.
    """
    check_export(path, "matrix", overwrite=overwrite)
    if not isinstance(model, ProjectedBackbone):
        raise InputError(
            "model: removes no positions; accepted: one loaded with a RASA file (rasa=, --rasa)"
        )
    with atomic_path(path) as temporary:
        save_safetensors({"matrix": model.rasa.matrix().cpu()}, temporary, {"format": "pt"})
    return Path(path)


def check_export(
    path: str | os.PathLike[str], form: str, *, overwrite: bool = False, n_bytes: int = 0
) -> None:
    """Refuses an output that could not be written, before there is a model for it.

    Args:
        path: the file, or the folder of "huggingface".
        form: "safetensors", "huggingface", "onnx", "torch-export" or "matrix".
        overwrite: whether it may exist.
        n_bytes: its size where that is known, to be compared with the space that is free.

    Raises:
        InputError: see `check_file` and `check_folder`; a name with another ending; or packages
            that the form needs are not installed.
    """
    if form == "huggingface":
        check_folder(path, overwrite=overwrite, files=FILES, n_bytes=n_bytes)
        return
    given, suffix = os.fspath(path), _SUFFIXES[form]
    if Path(path).suffix != suffix:
        raise InputError(f"output: '{given}'; accepted: a name that ends in {suffix}")
    check_file(path, overwrite=overwrite, n_bytes=n_bytes)
    if form == "safetensors":
        check_file(backbone_files(path)[1], overwrite=overwrite)
    if form == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise InputError("ONNX files need onnx and onnxscript: pip install 'franca-fast[export]'")


def _prepare(
    model: VisionTransformer, img_size: int | tuple[int, int] | None, batch_size: int | None
) -> tuple[ImageFeatures, tuple[int, int], int]:
    """The module to export, its image size, and how many images to trace it with."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size: {batch_size}; accepted: 1 or more, or None for any")
    side = model.config["img_size"] if img_size is None else img_size
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    return ImageFeatures(model, size), size, batch_size or 2  # 1 would be taken for a constant


def _images(
    model: VisionTransformer, size: tuple[int, int], n_images: int, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_images, model.config["in_chans"], *size, generator=generator)


def _shapes(batch_size: int | None) -> dict[str, Any] | None:
    return {INPUT: {0: torch.export.Dim("batch")}} if batch_size is None else None


def _facts(model: VisionTransformer, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "height": size[0],
        "width": size[1],
        "patch_size": model.patch_size,
        "image_mean": list(CropSettings.mean),
        "image_std": list(CropSettings.std),
        "positions_removed": isinstance(model, ProjectedBackbone),
    }


def _onnx_runner(file: Path) -> _Runner | None:
    """Runs an ONNX file; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    with utf8_path(file) as readable:
        session = onnxruntime.InferenceSession(readable, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        arrays = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return {name: torch.from_numpy(a) for name, a in zip(OUTPUTS, arrays, strict=True)}

    return run


def _compare(run: _Runner, features: ImageFeatures, images: Tensor, target: Path) -> None:
    """Refuses a program whose outputs are not those of the model."""
    with torch.no_grad():
        expected, given = features(images), run(images)
    for name in OUTPUTS:
        difference = (given[name] - expected[name]).abs().max().item()
        if not difference <= _TOLERANCE * max(1.0, expected[name].abs().max().item()):
            raise FrancaError(
                f"'{target}' was not written: its {name} would differ from the model's "
                f"by {difference:.1e}"
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """Holds back what exporters say about packages that do not matter here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
