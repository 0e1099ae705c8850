"""Keypoints of one image found in another by their features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """How a square image lies on the grid of its patches.

    The image, `img_size` pixels a side, stands in the middle of `cells` x `cells` patches with
    `padding` pixels on its left and top. Positions are in image widths: 0 to 1 over the image.

    Attributes:
        img_size: side of the image, pixels.
        cells: patches along a side.
        patch_size: side of a patch, pixels.
        centred: False for the convention of probe3d, which takes the grid for the image, samples
            with align_corners=True, and gives a cell's upper left corner as its position. True
            puts the features at the centres of their patches, for sampling and for the result.

    Example:
        >>> Geometry(800, 58, 14).padding
        6
    """

    img_size: int
    cells: int
    patch_size: int
    centred: bool = False

    @property
    def padding(self) -> int:
        """Pixels on the left and on the top of the image."""
        return (self.cells * self.patch_size - self.img_size) // 2

    def sample(self, grid: Tensor, positions: Tensor) -> Tensor:
        """Features at some positions, interpolated bilinearly.

        Args:
            grid: [cells, cells, d].
            positions: [n, 2], x and y in image widths.

        Returns:
            [n, d].

        Example:
            >>> grid = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[..., None]
            >>> middle = torch.tensor([[0.5, 0.25]])
            >>> Geometry(4, 2, 2).sample(grid, middle), Geometry(4, 2, 2, True).sample(grid, middle)
            (tensor([[1.]]), tensor([[0.5000]]))
        """
        if self.centred:
            side = self.cells * self.patch_size
            positions = (positions * self.img_size + self.padding) / side
        sampled = F.grid_sample(
            grid.movedim(-1, 0)[None],
            (positions * 2 - 1).to(grid)[None, None],
            mode="bilinear",
            padding_mode="border",
            align_corners=not self.centred,
        )
        return sampled[0, :, 0].T

    def positions(self, cells: Tensor) -> Tensor:
        """Where cells are in the image.

        Args:
            cells: int64 [n, 2], x and y.

        Returns:
            float64 [n, 2], in image widths.

        Example:
            >>> Geometry(4, 2, 2).positions(torch.tensor([[0, 1]]))
            tensor([[0.0000, 0.5000]], dtype=torch.float64)
            >>> Geometry(4, 2, 2, centred=True).positions(torch.tensor([[0, 1]]))
            tensor([[0.2500, 0.7500]], dtype=torch.float64)
        """
        if not self.centred:
            return cells.double() / self.cells
        pixels = (cells.double() + 0.5) * self.patch_size - self.padding
        return pixels / self.img_size


def matched_cells(source: Tensor, target: Tensor, positions: Tensor, geometry: Geometry) -> Tensor:
    """The patch of a target image that is most similar to each keypoint of a source image.

    Both grids are normalised, then the source's is sampled; of equally similar patches the first
    one wins, row by row.

    Args:
        source: [cells, cells, d], patch features as they are.
        target: the same of the target image.
        positions: [n, 2], keypoints of the source, x and y in image widths.
        geometry: where the features are sampled.

    Returns:
        int64 [n, 2], x and y of the cells, on the CPU.

    Example:
        >>> grid = torch.eye(4).reshape(2, 2, 4)
        >>> matched_cells(grid, grid, torch.tensor([[0.0, 1.0]]), Geometry(4, 2, 2))
        tensor([[0, 1]])
    """
    source, target = F.normalize(source, dim=-1), F.normalize(target, dim=-1)
    similarity = geometry.sample(source, positions) @ target.flatten(0, 1).T
    best = similarity.argmax(1).cpu()
    width = target.shape[1]
    return torch.stack([best % width, best.div(width, rounding_mode="floor")], 1)


def keypoint_errors(found: Tensor, truth: Tensor, scale: float) -> Tensor:
    """Distances between keypoints, in units of a scale.

    Args:
        found: [n, 2], in image widths.
        truth: the same, where they are.
        scale: larger side of the object's box, in image widths.

    Returns:
        float64 [n].

    Example:
        >>> keypoint_errors(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.3, 0.4]]), 0.5)
        tensor([1.0000], dtype=torch.float64)
    """
    return (found.double() - truth.double()).norm(dim=1) / scale
