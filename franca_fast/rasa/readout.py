"""Reading positions from patch tokens: what is trained, and how well it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from franca_fast.data.randomness import Purpose, permutation
from franca_fast.rasa.patch_tokens import PatchFeatures
from franca_fast.rasa.positions import Moments, chance_error, patch_positions
from franca_fast.rasa.settings import FitSettings

_PAPER_EPOCHS, _PAPER_STEPS = 5, 410  # five epochs of Pascal VOC's 10,582 images in batches of 128
_FINGERPRINT = 4  # significant digits: rounding differs between machines, models differ more


class Readout:
    """Finds the two directions that tell rows and columns best.

    Args:
        features: the tokens.
        settings: how.
        numbers: of the images to use; None for all.

    Attributes:
        chance: mean square error of knowing nothing.
    """

    def __init__(
        self,
        features: PatchFeatures,
        settings: FitSettings,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self._features, self._settings = features, settings
        self._numbers = (
            torch.arange(features.n_images) if numbers is None else torch.tensor(numbers)
        )
        self._positions = patch_positions(features.grid)
        self.chance = chance_error(self._positions)
        self._moments: Moments | None = None
        # Steps of one size suit tokens of one size. LayerNorm's are of size 1 as a rule; this makes
        # those of any backbone so, and changes no direction.
        sample = next(features.batches(self._order(0, 0), settings.batch_size))
        self._device = sample.device
        self._sample_mean = sample.double().mean((0, 1)).cpu()
        self._size = float(sample.double().square().mean().sqrt())

    def find(
        self,
        matrix: Tensor | None,
        iteration: int,
        advance: Callable[[float], object] = float,
    ) -> tuple[Tensor, float]:
        """Finds the directions in cleaned tokens M z.

        Args:
            matrix: M, float64 [d, d]; None for the identity.
            iteration: number of the iteration; it decides the order of the images.
            advance: told the shares of the work that get done, which add up to 1.

        Returns:
            weights float32 [2, d], and their mean square error over the last epoch.
        """
        if matrix is None:
            matrix = torch.eye(self._features.width, dtype=torch.float64)
        if self._settings.readout == "covariance":
            found = self._covariance(matrix)
            advance(1.0)
            return found
        return self._train(matrix, iteration, advance)

    def error(self, weight: Tensor, matrix: Tensor | None, numbers: Sequence[int]) -> float:
        """Mean square error of trained weights on cleaned tokens of other images."""
        seen = weight if matrix is None else (weight.double() @ matrix).float()
        seen, target = seen.to(self._device), self._positions.to(self._device)
        total, images = torch.zeros((), dtype=torch.float64, device=self._device), 0
        for tokens in self._features.batches(numbers, self._settings.batch_size):
            error = (self._answer(tokens @ seen.T) - target).square().mean()
            total, images = total + error.double() * len(tokens), images + len(tokens)
        return total.item() / images

    def fingerprint(self) -> list[float]:
        """Numbers that differ between models and sets of images."""
        values = [self._size, *self._sample_mean[:8].tolist()]
        rounded = [float(f"{value:.{_FINGERPRINT}g}") for value in values]
        return [self._features.n_images, *self._features.grid, *rounded]

    @torch.enable_grad()
    def _train(
        self, matrix: Tensor, iteration: int, advance: Callable[[float], object]
    ) -> tuple[Tensor, float]:
        settings = self._settings
        batches = math.ceil(len(self._numbers) / settings.batch_size)
        epochs = settings.epochs or max(_PAPER_EPOCHS, math.ceil(_PAPER_STEPS / batches))
        # From zero, so that nothing but what was learnt is removed.
        shape = (2, self._features.width)
        weight = torch.zeros(shape, device=self._device, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=settings.lr, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        # W (M z) = (W M) z: the tokens need not be cleaned themselves.
        scaled = (matrix / self._size).float().to(self._device)
        target = self._positions.to(self._device)
        error = 0.0
        for epoch in range(epochs):
            total, images = torch.zeros((), dtype=torch.float64, device=self._device), 0
            order = self._order(iteration + 1, epoch)
            for tokens in self._features.batches(order, settings.batch_size):
                seen = weight @ scaled
                loss = (self._answer(tokens @ seen.T) - target).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                advance(1 / (epochs * batches))
                total += loss.detach().double() * len(tokens)
                images += len(tokens)
            error = total.item() / images
        found = weight.detach().cpu().double() / self._size
        # What lies in removed directions reads nothing; the released code keeps it all the same.
        return (found if settings.compatible else found @ matrix).float(), error

    def _covariance(self, matrix: Tensor) -> tuple[Tensor, float]:
        if self._moments is None:
            tokens = self._features.batches(self._numbers.tolist(), self._settings.batch_size)
            self._moments = Moments(tokens, self._positions)
        error = self._moments.error(self._moments.probe(matrix))
        return (matrix @ self._moments.covariance).T.float(), error

    def _answer(self, read: Tensor) -> Tensor:
        return read.sigmoid() if self._settings.readout == "sigmoid" else read + 0.5

    def _order(self, iteration: int, epoch: int) -> list[int]:
        counters = (iteration, epoch)
        n = len(self._numbers)
        order = permutation(self._settings.seed, Purpose.SAMPLE_ORDER, counters, n)
        return self._numbers[torch.from_numpy(order)].tolist()
