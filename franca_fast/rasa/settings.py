"""How positions are found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from franca_fast.data.decoding import MAX_IMAGE_PIXELS, DecodeSettings
from franca_fast.errors import InputError, did_you_mean
from franca_fast.rasa.image_crops import check_crops

READOUTS = ("sigmoid", "linear", "covariance")


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
        max_image_pixels: larger images are skipped without decoding them.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".

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
    max_image_pixels: int = MAX_IMAGE_PIXELS
    levels: str = "full"

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise InputError(
                f"readout: '{self.readout}'{did_you_mean(self.readout, READOUTS)}; accepted: "
                f"{', '.join(READOUTS)}"
            )
        check_crops(self.crops)
        accepted = {
            "iterations": (self.iterations >= 1, "1 or more"),
            "epochs": (self.epochs is None or self.epochs >= 1, "1 or more, or None"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "encode_batch": (self.encode_batch >= 1, "1 or more"),
            "stop_below": (0 <= self.stop_below < 1, "0 <= stop_below < 1"),
            "lr": (math.isfinite(self.lr) and self.lr > 0, "a positive number"),
            "cache_gb": (self.cache_gb >= 0, "0 or more"),
            "num_workers": (self.num_workers >= 0, "0 or more"),
        }
        for name, (good, what) in accepted.items():
            if not good:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: {what}")

        _ = self.decoding

    @property
    def decoding(self) -> DecodeSettings:
        """Which images are skipped, and how levels are mapped."""
        return DecodeSettings(self.max_image_pixels, self.levels)

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings that change the projector, JSON-able."""
        speed = ("iterations", "stop_below", "cache_gb", "encode_batch", "num_workers")
        newer = {"max_image_pixels": MAX_IMAGE_PIXELS, "levels": "full"}  # projectors lack them
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in speed and (name not in newer or value != newer[name])
        }
