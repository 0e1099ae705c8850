"""Vision transformers of Hugging Face's transformers as encoders."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.data.settings import CropSettings
from franca_fast.errors import InputError
from franca_fast.evaluation.foreign_encoders import Anatomy, ForeignEncoder, library, one_line
from franca_fast.hub.huggingface import CONFIG_FILE, MODEL_TYPES, PROCESSOR_FILE
from franca_fast.hub.weight_files import check_finite, shorten

# Type in config.json -> tokens before the patches' and registers'; the first is CLS.
_FIRST_TOKENS = {
    "dinov3_vit": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "vit": 1,
    "vit_msn": 1,
    "deit": 2,
    "ijepa": 0,
}
_UNUSED = ("pooler.",)  # parts that the tokens do not depend on, and that files may lack
_KEYS = ("k_proj", "key")

logger = logging.getLogger(__name__)


class HuggingFaceEncoder(ForeignEncoder):
    """A network of transformers whose `last_hidden_state` is [B, prefix + patches, d].

    Args:
        model: a network of one of the accepted types (dinov3_vit, dinov2, vit, ...).
        name: what messages call it; None takes its class's name.
        processor: the content of `preprocessor_config.json`, which tells mean and standard
            deviation; without it they are ImageNet's.

    Raises:
        InputError: another type.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str | None = None,
        processor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, _anatomy(model, name or type(model).__name__, processor or {}))
        # Networks with learnt positions refuse other sizes unless they are told.
        knows = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if knows else {}

    def _tokens(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.model(images, **self._options).last_hidden_state
        return tokens

    def _key_module(self) -> nn.Module | None:
        last = self.anatomy.blocks[-1]
        named = [module for name, module in last.named_modules() if name.split(".")[-1] in _KEYS]
        return named[-1] if named else None


def foreign_type(folder: Path) -> str | None:
    """The type of a Hugging Face folder that `load_model` does not load; None for anything else."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) and kind not in MODEL_TYPES else None


def is_of_transformers(model: object) -> bool:
    """Whether a network is one of transformers'."""
    return isinstance(model, nn.Module) and hasattr(
        getattr(model, "config", None), "num_hidden_layers"
    )


def load_huggingface_encoder(folder: str | os.PathLike[str]) -> HuggingFaceEncoder:
    """Loads a Hugging Face folder through transformers; nothing is downloaded, no code is run.

    Args:
        folder: with `config.json`, weights as safetensors (one file or several with an index) and
            as a rule `preprocessor_config.json`.

    Returns:
        the encoder in evaluation mode, on the CPU, float32.

    Raises:
        InputError: transformers is not installed, another type of model, or weights that are
            missing, damaged or not finite.
    """
    named = os.fspath(folder)
    kind = foreign_type(Path(folder))
    if kind not in _FIRST_TOKENS:
        raise _wrong_type(named, kind)
    transformers = library("transformers", named)
    try:
        with _quiet(transformers):
            model, found = transformers.AutoModel.from_pretrained(
                named,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # whatever transformers and safetensors raise
        raise InputError(
            f"model: '{named}' cannot be loaded by transformers: {one_line(error)}"
        ) from error
    missing = [key for key in sorted(found["missing_keys"]) if not key.startswith(_UNUSED)]
    if missing:
        raise InputError(f"weights '{named}' do not fit: missing {shorten(missing)}")
    if unexpected := sorted(found["unexpected_keys"]):
        logger.warning(
            "%s: %d tensors are no part of the encoder and were left out: %s",
            *(named, len(unexpected), shorten(unexpected)),
        )
    check_finite(model.state_dict(), named)
    encoder = HuggingFaceEncoder(model, named, _processor(Path(folder)))
    encoder.eval()
    return encoder


def _processor(folder: Path) -> dict[str, Any]:
    file = folder / PROCESSOR_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{file}': no JSON ({error})") from error
    return content if isinstance(content, dict) else {}


def _normalisation(processor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels in 0..1, as a processor's settings have them.

    Levels q = 255 p become (q f - m) / s, which is (p - m / (255 f)) / (s / (255 f)).
    """
    mean, std = CropSettings.mean, CropSettings.std
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean") or mean, processor.get("image_std") or std
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if factor == 1 / 255:
        return list(mean), list(std)
    return [m / (255 * factor) for m in mean], [s / (255 * factor) for s in std]


def _anatomy(model: nn.Module, name: str, processor: Mapping[str, Any]) -> Anatomy:
    config: Any = model.config
    kind = config.model_type
    if kind not in _FIRST_TOKENS:
        raise _wrong_type(name, kind)
    first = _FIRST_TOKENS[kind]
    size, patch = _pair(config.image_size), _pair(config.patch_size)
    if patch[0] != patch[1]:
        raise InputError(f"model: '{name}' with patches {patch}; accepted: square ones")
    blocks = next(
        m
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers
    )
    norm: Any = model.norm if hasattr(model, "norm") else model.layernorm
    mean, std = _normalisation(processor)
    return Anatomy(
        name=name,
        patch_size=patch[0],
        embed_dim=config.hidden_size,
        img_size=size,
        other_sizes=True,
        prefix_tokens=first + getattr(config, "num_register_tokens", 0),
        has_cls=first > 0,
        blocks=blocks,
        norm=norm,
        mean=mean,
        std=std,
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _wrong_type(name: str, kind: object) -> InputError:
    return InputError(f"model: '{name}' of type '{kind}'; accepted: {', '.join(_FIRST_TOKENS)}")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' bar and report, whose content is said in our own way."""
    said = transformers.utils.logging
    bar, level = said.is_progress_bar_enabled(), said.get_verbosity()
    said.disable_progress_bar()
    said.set_verbosity_error()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bar:
            said.enable_progress_bar()
