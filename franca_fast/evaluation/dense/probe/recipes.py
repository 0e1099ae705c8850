"""How linear segmentation is trained: the recipes of Franca's paper and of DINOv3."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from franca_fast.errors import InputError, did_you_mean

_OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class SegmentationRecipe:
    """All settings of a training, none left open.

    Attributes:
        iterations: steps.
        batch_size: crops of a step.
        crop: side of crops and of the windows of the test, pixels.
        stride: from one window to the next, pixels.
        optimizer: "sgd" or "adamw".
        learning_rate: at its highest.
        weight_decay: of all parameters of the head.
        warm_up: steps in which the learning rate grows linearly; it then falls to 0 as a cosine.
        dropout: probability with which a channel of an image is dropped.
    """

    iterations: int
    batch_size: int
    crop: int
    stride: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warm_up: int
    dropout: float


class _Published(NamedTuple):
    """A recipe as published: iterations are given, or follow from epochs."""

    recipe: SegmentationRecipe
    epochs: int | None


# The paper of Franca says nothing of its batch size, schedule and dropout: 16, a cosine without
# warm-up and none are ours.
_RECIPES = {
    "franca": _Published(SegmentationRecipe(0, 16, 518, 259, "sgd", 1e-3, 5e-4, 0, 0.0), 50),
    "dinov3": _Published(
        SegmentationRecipe(40_000, 16, 512, 341, "adamw", 1e-3, 1e-3, 1500, 0.1), None
    ),
}


@dataclass(frozen=True)
class LinearSegmentationSettings:
    """Settings of `linear_segmentation`; None takes the recipe's.

    Raises:
        InputError: a value outside its range.
    """

    recipe: str = "franca"  # "franca", of its paper, or "dinov3"
    epochs: int | None = None  # franca: 50
    iterations: int | None = None  # steps, in place of epochs; dinov3: 40,000
    batch_size: int | None = None  # crops of a step; 16
    crop: int | None = None  # side of crops and windows, pixels; franca: 518, dinov3: 512
    stride: int | None = None  # of windows, pixels; franca: 259, dinov3: 341
    optimizer: str | None = None  # franca: "sgd" with momentum 0.9, dinov3: "adamw"
    learning_rate: float | None = None  # 1e-3
    weight_decay: float | None = None  # franca: 5e-4, dinov3: 1e-3
    warm_up: int | None = None  # steps; dinov3: 1500 of 40,000, and the same share of others
    dropout: float | None = None  # of channels; dinov3: 0.1
    resize: tuple[float, ...] = (0.5, 2.0)  # shorter side of a training image, in crops
    seed: int = 0  # of the weights, the order of the images, the crops and dropout

    def __post_init__(self) -> None:
        if self.recipe not in _RECIPES:
            raise InputError(
                f"recipe: '{self.recipe}'{did_you_mean(self.recipe, _RECIPES)}; accepted: "
                f"{', '.join(_RECIPES)}"
            )
        for name in ("epochs", "iterations", "batch_size", "crop", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: {value}; accepted: 1 or more")
        if self.epochs is not None and self.iterations is not None:
            raise InputError(
                f"epochs: {self.epochs} with iterations {self.iterations}; accepted: one of the two"
            )
        if self.optimizer not in (None, *_OPTIMIZERS):
            raise InputError(f"optimizer: '{self.optimizer}'; accepted: {', '.join(_OPTIMIZERS)}")
        for name in ("learning_rate", "weight_decay", "warm_up"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name}: {value}; accepted: 0 or more")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout: {self.dropout}; accepted: 0 <= dropout < 1")
        if len(self.resize) != 2 or not 0 < self.resize[0] <= self.resize[1] < math.inf:
            raise InputError(f"resize: {self.resize}; accepted: two factors, 0 < least <= most")

    def resolved(self, n_images: int, patch_size: int) -> SegmentationRecipe:
        """The recipe with these settings in it.

        The recipe's own crop becomes the nearest multiple of the patch; one that is set must be a
        multiple. A crop that is set without a stride keeps the recipe's ratio of the two.

        Args:
            n_images: of the training set.
            patch_size: pixels.

        Raises:
            InputError: a stride above the crop.

        Example:
            >>> settings = LinearSegmentationSettings("dinov3", iterations=400)
            >>> recipe = settings.resolved(10_582, 14)
            >>> recipe.crop, recipe.stride, recipe.warm_up
            (518, 341, 15)
        """
        base, epochs = _RECIPES[self.recipe]
        batch_size = self.batch_size or base.batch_size
        iterations = self.iterations or base.iterations
        if self.epochs is not None or not iterations:
            iterations = math.ceil((self.epochs or epochs or 1) * n_images / batch_size)
        warm_up = round(base.warm_up * iterations / max(1, base.iterations))
        crop, stride = self.crop, self.stride
        if crop is None:
            crop = patch_size * max(1, round(base.crop / patch_size))
            stride = min(crop, base.stride) if stride is None else stride
        elif stride is None:
            stride = max(1, round(crop * base.stride / base.crop))
        if stride > crop:
            raise InputError(f"stride: {stride}; accepted: at most the crop, {crop}")
        given = {
            name: value
            for name in ("optimizer", "learning_rate", "weight_decay", "dropout", "warm_up")
            if (value := getattr(self, name)) is not None
        }
        recipe = replace(
            base,
            iterations=iterations,
            batch_size=batch_size,
            crop=crop,
            stride=stride,
            warm_up=warm_up,
        )
        return replace(recipe, **given)
