"""Masks over the grid of patches: which patches of a crop the student does not see.

A mask object is called with a number of patches and a generator. All masks of a batch are made at
once; the only loop is over kinds of arithmetic, never over crops or patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from franca_fast.data.randomness import Purpose, permutation, uniforms
from franca_fast.data.settings import MaskSettings
from franca_fast.errors import InputError

_ASPECT = (0.3, 1 / 0.3)


class Mask(ABC):
    """What all masks share: the checks, and drawing from a generator.

    A subclass turns uniform numbers [m, numbers_per_mask] into m masks in `from_uniforms`.
    """

    numbers_per_mask: int

    def __init__(self, grid_size: int | tuple[int, int]) -> None:
        grid = (grid_size, grid_size) if isinstance(grid_size, int) else tuple(grid_size)
        if len(grid) != 2 or min(grid) < 1:
            raise InputError(
                f"grid_size: {grid_size!r}; accepted: rows and columns of patches, 1 or more"
            )
        self.height, self.width = grid

    def __call__(
        self, n_masked: int | Sequence[int] | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws one mask, or one for each of several numbers.

        Args:
            n_masked: masked patches, from 0 to H * W; an integer, or m of them.
            generator: source of randomness; None takes torch's global one.

        Returns:
            bool [H, W] for an integer, [m, H, W] otherwise; True is masked.

        Raises:
            InputError: a number outside the range.
        """
        counts = torch.as_tensor(n_masked, dtype=torch.int64)
        numbers = torch.rand(
            (max(1, counts.numel()), self.numbers_per_mask),
            generator=generator,
            dtype=torch.float64,
        )
        masks = self.from_uniforms(counts.reshape(-1), numbers[: counts.numel()])
        return masks[0] if counts.dim() == 0 else masks

    def from_uniforms(self, n_masked: Tensor, numbers: Tensor) -> Tensor:
        """Masks as a function of uniform numbers.

        Args:
            n_masked: int64 [m].
            numbers: float64 [m, numbers_per_mask] in [0, 1).

        Returns:
            bool [m, H, W].

        Raises:
            InputError: a number of patches outside 0..H * W.
        """
        patches = self.height * self.width
        if n_masked.numel() and not 0 <= int(n_masked.min()) <= int(n_masked.max()) <= patches:
            given = n_masked.tolist()
            raise InputError(f"n_masked: {given}; accepted: from 0 to {patches} patches")
        return self._masks(n_masked, numbers)

    @abstractmethod
    def _masks(self, n_masked: Tensor, numbers: Tensor) -> Tensor:
        """Masks of checked numbers of patches; shapes as in `from_uniforms`."""


class RandomMask(Mask):
    """Masks patches chosen independently of their place.

    Args:
        grid_size: H = W, or (H, W).

    Example:
        >>> int(RandomMask(16)(40, torch.Generator().manual_seed(0)).sum())
        40
    """

    def __init__(self, grid_size: int | tuple[int, int]) -> None:
        super().__init__(grid_size)
        self.numbers_per_mask = self.height * self.width

    def _masks(self, n_masked: Tensor, numbers: Tensor) -> Tensor:
        ranks = numbers.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        return (ranks < n_masked[:, None]).view(-1, self.height, self.width)


class BlockMask(Mask):
    """Masks one block: a rectangle cut, in row-major order, to exactly the number asked for.

    The aspect is exp(U) with U uniform between the logarithms of the smallest and the largest
    aspect, both first clamped so that the rectangle fits the grid; the place is uniform.

    Args:
        grid_size: H = W, or (H, W).
        aspect: smallest and largest height / width.
        roll: shift the mask cyclically by a uniform number of rows and columns.

    Example:
        >>> BlockMask((8, 12))(24, torch.Generator().manual_seed(0)).shape
        torch.Size([8, 12])
    """

    numbers_per_mask = 5  # aspect, top, left, and the two shifts

    def __init__(
        self,
        grid_size: int | tuple[int, int],
        aspect: tuple[float, float] = _ASPECT,
        roll: bool = False,
    ) -> None:
        super().__init__(grid_size)
        if not 0 < aspect[0] <= aspect[1]:
            raise InputError(f"aspect: {aspect}; accepted: 0 < min <= max")
        self.aspect, self.roll = tuple(aspect), roll

    def _masks(self, n_masked: Tensor, numbers: Tensor) -> Tensor:
        return self._blocks(n_masked, numbers)

    def _blocks(self, area: Tensor, numbers: Tensor) -> Tensor:
        """Blocks of exactly `area` patches, bool [m, H, W]."""
        height, width = self.height, self.width
        c = area.double().clamp(min=1)
        # Fitting the grid: c r <= H^2 and c / r <= W^2.
        bounds = torch.tensor(self.aspect, dtype=torch.float64).log()[:, None]
        low, high = bounds.clamp((c / width**2).log(), (height**2 / c).log())
        r = (low + numbers[:, 0] * (high - low)).exp()
        h = (c * r).sqrt().ceil().clamp(max=height)
        w = (c / r).sqrt().ceil().clamp(max=width)
        top = (numbers[:, 1] * (height - h + 1)).floor()
        left = (numbers[:, 2] * (width - w + 1)).floor()

        # Rolling is done by shifting coordinates: the value at y comes from y - shift.
        rows = torch.arange(height, dtype=torch.float64).expand(len(c), -1)
        columns = torch.arange(width, dtype=torch.float64).expand(len(c), -1)
        if self.roll:
            rows = (rows - (numbers[:, 3:4] * height).floor()) % height
            columns = (columns - (numbers[:, 4:5] * width).floor()) % width
        y = (rows - top[:, None])[:, :, None]
        x = (columns - left[:, None])[:, None, :]
        h, w, c = h[:, None, None], w[:, None, None], area[:, None, None]
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        return inside & (y * w + x < c)


class InverseBlockMask(BlockMask):
    """Masks everything except one block of max(1, H * W - n_masked) visible patches.

    Without a roll the visible block lies near the centre more often than near the border, so
    central patches are masked less often.

    Example:
        >>> int(InverseBlockMask(16)(100, torch.Generator().manual_seed(0)).sum())
        100
    """

    def _masks(self, n_masked: Tensor, numbers: Tensor) -> Tensor:
        visible = (self.height * self.width - n_masked).clamp(min=1)
        return ~self._blocks(visible, numbers)


class CyclicMask(InverseBlockMask):
    """Franca's mask: the inverse block, shifted cyclically along both axes.

    The shift is uniform over all rows and columns, so every patch is masked equally often. At
    least one patch stays visible.

    Args:
        grid_size: H = W, or (H, W).
        aspect: smallest and largest height / width of the visible block.

    Example:
        >>> mask = CyclicMask(16)(100, torch.Generator().manual_seed(0))
        >>> mask.shape, int(mask.sum())
        (torch.Size([16, 16]), 100)
    """

    def __init__(
        self, grid_size: int | tuple[int, int], aspect: tuple[float, float] = _ASPECT
    ) -> None:
        super().__init__(grid_size, aspect, roll=True)


def build_mask(settings: MaskSettings, grid_size: int | tuple[int, int]) -> Mask:
    """The mask object that the settings name."""
    if settings.kind == "random":
        return RandomMask(grid_size)
    if settings.kind == "cyclic":
        return CyclicMask(grid_size)
    kind = BlockMask if settings.kind == "block" else InverseBlockMask
    return kind(grid_size, roll=settings.roll)


def sample_masks(
    mask: Mask,
    settings: MaskSettings,
    seed: int,
    draw: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Masks of the global crops of one batch, or of one rank's share of it.

    int(2 B * probability) of the 2 B crops of the whole batch are masked. The j-th of m masked
    crops takes a ratio uniform within the j-th of m equal steps between min and max; which crop
    gets which ratio is random. Ranks hold every world_size-th image of the batch.

    Args:
        mask: what draws a mask of a given number of patches.
        settings: probability and ratios.
        seed: of the run.
        draw: number of images drawn before this batch.
        batch_size: B, images in the whole batch (of all ranks).
        rank: which share to return.
        world_size: number of shares.

    Returns:
        bool [2 b, H * W], crop-major, with b = B / world_size.
    """
    patches = mask.height * mask.width
    crops = 2 * batch_size
    masked = int(crops * settings.mask_sample_probability)
    low, high = settings.mask_ratio_min_max
    within = uniforms(seed, Purpose.MASK_COUNTS, np.array([draw]), max(1, masked))[0, :masked]
    ratios = low + (high - low) * (np.arange(masked) + within) / max(1, masked)
    counts = np.zeros(crops, np.int64)
    if high > 0:
        counts[:masked] = np.clip((patches * ratios).astype(np.int64), 1, patches)
    counts = counts[permutation(seed, Purpose.MASK_ORDER, (draw,), crops)]

    images = np.arange(rank, batch_size, world_size)
    own = np.stack([images, images + batch_size]).reshape(-1)  # positions in the crop-major batch
    identity = np.stack([draw + own % batch_size, own // batch_size], 1)
    numbers = uniforms(seed, Purpose.MASK_SHAPES, identity, mask.numbers_per_mask)
    masks = mask.from_uniforms(torch.from_numpy(counts[own]), torch.from_numpy(numbers))
    return masks.flatten(1)
