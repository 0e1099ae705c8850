"""Finding the directions that tell positions."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder, as_encoder, image_size_of
from franca_fast.evaluation.features import Source
from franca_fast.files import check_file, save_or_keep
from franca_fast.hub.projector import PositionProjector
from franca_fast.hub.projector_files import check_projector_output
from franca_fast.hub.weight_files import SAFETENSORS_SUFFIX
from franca_fast.models import ProjectedBackbone, ProjectedEncoder
from franca_fast.paths import longest_name, shortened
from franca_fast.rasa.image_crops import ImageCrops
from franca_fast.rasa.patch_tokens import PatchFeatures, open_features
from franca_fast.rasa.readout import Readout
from franca_fast.rasa.settings import FitSettings

_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
TOKENS_PER_DIMENSION = 10  # with fewer, a read-out explains positions by chance

logger = logging.getLogger(__name__)


def fit(
    model: Encoder | str | os.PathLike[str],
    images: Source,
    settings: FitSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PositionProjector:
    """Finds the directions of position in a model's patch tokens; the model is not changed.

    The same model, images and settings give the same projector, bit for bit on the CPU.

    Args:
        model: an encoder with patch tokens (`forward_features` and `patch_size`), used on the
            device it is on; or what `load_encoder` takes.
        images: image files, folders or shards, as `embed` takes them; labels play no part.
        settings: see `FitSettings`; None takes the paper's.
        output: also write the projector there (see `PositionProjector.save`). After every
            iteration what there is so far goes to `<output>.partial.safetensors`, from which the
            same call continues an interrupted fit, with the same result.
        overwrite: whether `output` may exist.
        progress: whether to show a bar and a line per iteration on stderr.

    Raises:
        InputError: wrong arguments, too few readable images, features that are not finite, or
            an encoder without patch tokens, or an output that cannot be written.
        OutputError: writing failed after all; says where the projector is kept instead.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
        >>> fit(model, "FashionMNIST:split=TEST", FitSettings(iterations=2, epochs=1)).rank
        4
    """
    settings = settings or FitSettings()
    if output is not None:
        check_projector_output(output, overwrite=overwrite)
        partial = partial_path(output)
        check_file(partial, overwrite=True)
    encoder = as_encoder(model)
    features = open_features(
        encoder,
        crops_of(encoder, images, settings),
        cache_gb=settings.cache_gb,
        encode_batch=settings.encode_batch,
        progress=progress,
    )
    if output is None:
        return fit_features(features, settings, progress=progress)
    projector = fit_features(features, settings, partial=partial, progress=progress)
    save_or_keep(output, lambda file: projector.save(file, overwrite=overwrite))
    with suppress(FileNotFoundError):
        partial.unlink()
    return projector


def partial_path(output: str | os.PathLike[str]) -> Path:
    """Where a fit keeps what there is after each iteration: `<output>.partial.safetensors`."""
    path, suffix = Path(output), f".partial{SAFETENSORS_SUFFIX}"
    return path.with_name(shortened(path.name, longest_name(path.parent) - len(suffix)) + suffix)


def crops_of(encoder: Encoder, images: Source, settings: FitSettings) -> ImageCrops:
    """The images as the settings crop them for an encoder.

    Raises:
        InputError: no such images, a size that does not fit, or positions are removed from the
            encoder's tokens already.
    """
    if isinstance(encoder, (ProjectedBackbone, ProjectedEncoder)):
        raise InputError("model: removes positions already; accepted: one that does not")
    size = image_size_of(encoder, settings.img_size)
    return ImageCrops(
        images, size, settings.crops, settings.seed, settings.num_workers, settings.decoding
    )


def fit_features(
    features: PatchFeatures,
    settings: FitSettings,
    *,
    partial: Path | None = None,
    progress: bool = False,
) -> PositionProjector:
    """Fits a projector to patch tokens.

    Args:
        features: the tokens.
        settings: how.
        partial: where to keep what there is after every iteration, and to continue from.
        progress: whether to show a bar on stderr.

    Raises:
        InputError: too few tokens, a width too small for the iterations, or no position in them.

    Example:
        >>> from franca_fast.rasa.patch_tokens import CachedFeatures
        >>> tokens = CachedFeatures(torch.randn(64, 4, 4, 16) + torch.randn(4, 4, 16))
        >>> fit_features(tokens, FitSettings(iterations=1, epochs=40)).rank
        2
    """
    _check_size(features, settings)
    readout = Readout(features, settings)
    known = {"settings": settings.outcome, "fingerprint": readout.fingerprint()}
    weights, history = _continue_from(partial, known, settings.iterations)

    def projector() -> PositionProjector:
        facts = {**known, "chance": readout.chance, "iterations": list(history)}
        return PositionProjector(torch.stack(weights), compatible=settings.compatible, facts=facts)

    with tqdm(
        total=settings.iterations, bar_format=_BAR, disable=None if progress else True
    ) as bar:
        bar.update(len(weights))
        for i in range(len(weights), settings.iterations):
            matrix = projector().matrix() if weights else None
            weight, error = readout.find(matrix, i, bar.update)
            explained = 1 - error / readout.chance
            if explained < settings.stop_below:
                break
            weights.append(weight)
            history.append({"error": error, "explained": explained})
            bar.set_postfix_str(f"iteration {i + 1} read {explained:.1%} of the position")
            if partial is not None:
                _keep_partial(projector(), partial)
    if not weights:
        raise InputError(
            f"images: a read-out explains {explained:.2%} of the positions' variance, so there is "
            f"nothing to remove; accepted: {settings.stop_below:.2%} or more (stop_below)"
        )
    return projector()


def _keep_partial(projector: PositionProjector, partial: Path) -> None:
    try:
        projector.save(partial, overwrite=True)
    except (OSError, InputError) as error:  # the fit itself need not end for it
        logger.warning("what there is so far was not kept in %s: %s", partial, error)


def _check_size(features: PatchFeatures, settings: FitSettings) -> None:
    tokens = features.n_readable * features.grid[0] * features.grid[1]
    if tokens < TOKENS_PER_DIMENSION * features.width:
        raise InputError(
            f"images: {features.n_readable} images of {features.grid[0]} x {features.grid[1]} "
            f"patches; accepted: at least {TOKENS_PER_DIMENSION * features.width} patches, for "
            f"features of width {features.width}"
        )
    if 2 * settings.iterations >= features.width:
        raise InputError(
            f"iterations: {settings.iterations}, which remove all {features.width} dimensions; "
            f"accepted: up to {(features.width - 1) // 2}"
        )


def _continue_from(
    partial: Path | None, known: dict[str, Any], iterations: int
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """What an interrupted fit of the same thing left; nothing if there is none."""
    if partial is None or not partial.is_file():
        return [], []
    try:
        left = PositionProjector.from_files(partial)
    except InputError as error:
        logger.warning("%s: starting anew", error)
        return [], []
    if any(left.facts.get(key) != value for key, value in known.items()):
        logger.warning("%s is of another model, images or settings: starting anew", partial)
        return [], []
    return list(left.weights[:iterations]), left.facts["iterations"][:iterations]
