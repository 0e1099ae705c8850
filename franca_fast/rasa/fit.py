"""Finding the directions that tell positions."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.encoders import Encoder, image_size_of
from franca_fast.hub import load_model
from franca_fast.hub.projector import PositionProjector
from franca_fast.hub.projector_files import check_projector_output
from franca_fast.hub.state_dict import SAFETENSORS_SUFFIX
from franca_fast.models.position_removal import ProjectedBackbone
from franca_fast.rasa.image_crops import ImageCrops, check_crops
from franca_fast.rasa.patch_tokens import PatchFeatures, open_features
from franca_fast.rasa.readout import READOUTS, Readout

if TYPE_CHECKING:
    from franca_fast.evaluation.features import Source

_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
TOKENS_PER_DIMENSION = 10  # with fewer, a read-out explains positions by chance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How positions are found; the defaults are the paper's.

    Attributes:
        iterations: at most so many; each removes two directions.
        readout: "sigmoid" (the paper's) reads y = sigmoid(W z) and "linear" y = 0.5 + W z, both
            trained by AdamW on the mean square error. "covariance" trains nothing: it takes the
            covariance of z and y itself (spectral attribute removal, arXiv 2203.07893), after
            whose removal no linear probe does better than chance, so one iteration is enough.
        stop_below: stop when the share of the positions' variance that the read-out explains
            falls below this; what it reads then is not removed.
        crops: "random" or "center", see `ImageCrops`.
        img_size: side of the crops in pixels; None takes the model's own.
        lr: of AdamW, falling to 0 over each iteration as a cosine. There is no weight decay.
        epochs: passes over the images in each iteration; None takes the paper's 5, or as many
            more as make the paper's 410 steps.
        batch_size: images a step.
        compatible: remove pairs one after the other, as the released code (`PositionProjector`).
        seed: of the crops and of the order of images.
        cache_gb: memory for patch tokens in 10^9 bytes. If images * patches * d * 4 bytes are
            more, the model computes them again in every pass.
        encode_batch: images that the model sees at once.
        num_workers: threads that prepare images.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> FitSettings(readout="linear", epochs=1).iterations
        8
    """

    iterations: int = 8
    readout: str = "sigmoid"
    stop_below: float = 0.01
    crops: str = "random"
    img_size: int | None = None
    lr: float = 2e-3
    epochs: int | None = None
    batch_size: int = 128
    compatible: bool = False
    seed: int = 0
    cache_gb: float = 4.0
    encode_batch: int = 32
    num_workers: int = 2

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise InputError(
                f"readout '{self.readout}'{did_you_mean(self.readout, READOUTS)}; accepted are "
                f"{', '.join(READOUTS)}"
            )
        check_crops(self.crops)
        for name in ("iterations", "batch_size", "encode_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: 1 or more expected")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"epochs {self.epochs}: 1 or more expected")
        if not 0 <= self.stop_below < 1:
            raise InputError(f"stop_below {self.stop_below}: 0 <= stop_below < 1 expected")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr {self.lr}: a positive number expected")
        if not self.cache_gb >= 0:
            raise InputError(f"cache_gb {self.cache_gb}: 0 or more expected")
        if self.num_workers < 0:
            raise InputError(f"num_workers {self.num_workers}: 0 or more expected")

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings that change the projector, JSON-able."""
        speed = ("iterations", "stop_below", "cache_gb", "encode_batch", "num_workers")
        return {name: value for name, value in asdict(self).items() if name not in speed}


def fit(
    model: Encoder | str | os.PathLike[str],
    images: Source,
    settings: FitSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> PositionProjector:
    """Fits a projector; see `PositionProjector.fit`."""
    settings = settings or FitSettings()
    if output is not None:
        check_projector_output(output, overwrite=overwrite)
    encoder = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    features = open_features(
        encoder,
        crops_of(encoder, images, settings),
        cache_gb=settings.cache_gb,
        encode_batch=settings.encode_batch,
        progress=progress,
    )
    if output is None:
        return fit_features(features, settings, progress=progress)
    partial = Path(f"{os.fspath(output)}.partial{SAFETENSORS_SUFFIX}")
    projector = fit_features(features, settings, partial=partial, progress=progress)
    projector.save(output, overwrite=overwrite)
    with suppress(FileNotFoundError):
        partial.unlink()
    return projector


def crops_of(encoder: Encoder, images: Source, settings: FitSettings) -> ImageCrops:
    """The images as the settings crop them for an encoder.

    Raises:
        InputError: no such images, a size that does not fit, or positions are removed from the
            encoder's tokens already.
    """
    if isinstance(encoder, ProjectedBackbone):
        raise InputError("model: positions are removed from its patch tokens already")
    size = image_size_of(encoder, settings.img_size)
    return ImageCrops(images, size, settings.crops, settings.seed, settings.num_workers)


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
                projector().save(partial, overwrite=True)
    if not weights:
        raise InputError(
            f"the read-out explains {explained:.2%} of the positions' variance, less than "
            f"stop_below ({settings.stop_below:.2%}): there is nothing to remove"
        )
    return projector()


def _check_size(features: PatchFeatures, settings: FitSettings) -> None:
    tokens = features.n_readable * features.grid[0] * features.grid[1]
    if tokens < TOKENS_PER_DIMENSION * features.width:
        raise InputError(
            f"images: {features.n_readable} images of {features.grid[0]} x {features.grid[1]} "
            f"patches are too few for features of width {features.width}; at least "
            f"{TOKENS_PER_DIMENSION * features.width} patches are needed"
        )
    if 2 * settings.iterations >= features.width:
        raise InputError(
            f"iterations {settings.iterations}: two directions each of {features.width} leave "
            f"nothing over; accepted are up to {(features.width - 1) // 2}"
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
