"""Pixels to which patch features are upsampled bilinearly, without ever holding them all.

Upsampling is linear: the pixels F of an image are U T, where the rows of T are its patch features
and U [pixels, patches] is a product of one small matrix for rows and one for columns. So the mean
and the covariance of pixels follow from the patches, and a linear projection of pixels is the same
as that of patches, upsampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5  # added to standard deviations


def upsampling_weights(n: int, side: int) -> Tensor:
    """The matrix of linear interpolation along one axis (align_corners false).

    Args:
        n: patches.
        side: pixels.

    Returns:
        float64 [side, n].

    Example:
        >>> upsampling_weights(2, 4)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    identity = torch.eye(n, dtype=torch.float64, device="cpu")[None]
    return F.interpolate(identity, size=side, mode="linear", align_corners=False)[0].T.contiguous()


def labels_at(mask: Tensor, side: int) -> Tensor:
    """A mask resized to a square, nearest.

    Args:
        mask: int64 [H, W].
        side: pixels.

    Returns:
        int64 [side, side].

    Example:
        >>> labels_at(torch.tensor([[1, 2], [3, 255]]), 1)
        tensor([[1]])
    """
    # float64: PyTorch resizes no integers, and all class numbers are exact in it.
    return F.interpolate(mask[None, None].double(), size=(side, side), mode="nearest")[0, 0].long()


class PixelMoments:
    """Mean and covariance of upsampled pixels, in float64, image by image.

    Args:
        side: images have side x side pixels.

    Attributes:
        n_pixels: of all images so far.

    Example:
        >>> moments = PixelMoments(4)
        >>> moments.add(torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1))
        >>> moments.mean, moments.covariance
        (tensor([0.5000], dtype=torch.float64), tensor([[0.1562]], dtype=torch.float64))
    """

    def __init__(self, side: int) -> None:
        self._side = side
        self.n_pixels = 0
        self._sum = torch.zeros(0)
        self._products = torch.zeros(0)

    def add(self, grids: Tensor) -> None:
        """Adds images.

        Args:
            grids: patch features, float [B, h, w, d].
        """
        h, w, d = grids.shape[1:]
        rows, columns = (upsampling_weights(n, self._side).to(grids.device) for n in (h, w))
        if not self.n_pixels:
            self._sum = rows.new_zeros(d)
            self._products = rows.new_zeros(d, d)
        for grid in grids:
            patches = grid.double()
            pixels = torch.einsum("yh,xw,hwd->d", rows.sum(0, True), columns.sum(0, True), patches)
            # U'U is a product of two matrices, too; each patch has few neighbours in it.
            weighted = torch.einsum("hg,gwd->hwd", rows.T @ rows, patches)
            weighted = torch.einsum("wv,hvd->hwd", columns.T @ columns, weighted)
            self._sum += pixels
            self._products += patches.reshape(-1, d).T @ weighted.reshape(-1, d)
        self.n_pixels += len(grids) * self._side**2

    @property
    def mean(self) -> Tensor:
        """Float64 [d], on the CPU."""
        return (self._sum / self.n_pixels).cpu()

    @property
    def covariance(self) -> Tensor:
        """Of the population, float64 [d, d], on the CPU."""
        second = (self._products / self.n_pixels).cpu()
        return (second + second.T) / 2 - torch.outer(self.mean, self.mean)


@dataclass
class PixelComponents:
    """Standardised pixels by their principal components.

    Attributes:
        mean: float64 [m], of pixels.
        std: float64 [m], of the population of pixels.
        weight: float64 [m, k]; components are (x - mean) @ weight.
        eigenvalues: float64 [m], descending, of the covariance of standardised pixels.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    eigenvalues: Tensor

    @property
    def explained(self) -> float:
        """The share of the variance that the components keep."""
        kept = self.eigenvalues[: self.weight.shape[1]].sum()
        return float(kept / self.eigenvalues.sum().clamp(min=1e-300))

    def project(self, grids: Tensor) -> Tensor:
        """Components of patch features; upsampled, they are those of the pixels.

        Args:
            grids: float32 [..., d] with d >= m; the first m entries count.

        Returns:
            float32 [..., k], on their device.
        """
        mean, weight = (one.to(grids.device, torch.float32) for one in (self.mean, self.weight))
        return (grids[..., : len(mean)] - mean) @ weight


def pixel_components(moments: PixelMoments, width: int, n_components: int) -> PixelComponents:
    """Principal components of pixels standardised by (x - mean) / (std + 1e-5).

    Args:
        moments: of all pixels.
        width: m, the entries of the features that are used.
        n_components: at most m are there.

    Returns:
        the components; the sign of each is such that its largest entry is positive.

    Example:
        >>> moments = PixelMoments(4)
        >>> moments.add(torch.randn(3, 2, 2, 8))
        >>> pixel_components(moments, 4, 2).weight.shape
        torch.Size([4, 2])
    """
    covariance = moments.covariance[:width, :width]
    std = covariance.diagonal().clamp(min=0).sqrt()
    scale = std + EPSILON
    values, vectors = torch.linalg.eigh(covariance / torch.outer(scale, scale))
    vectors = vectors.flip(1)[:, :n_components]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    weight = vectors * largest.sign() / scale[:, None]
    return PixelComponents(moments.mean[:width], std, weight, values.flip(0).clamp(min=0))


class Pixels:
    """Components of all pixels of a set of images, upsampled where they are asked for.

    Args:
        patches: components of patches, float32 [N, h, w, k].
        side: each image has side x side pixels, row by row.
        device: where the pixels of images are computed; None takes that of `patches`.

    Attributes:
        per_image: side x side.

    Example:
        >>> pixels = Pixels(torch.arange(4.0).reshape(1, 2, 2, 1), 4)
        >>> pixels.of_images(0, 1)[5], pixels.rows(torch.tensor([5]))
        (tensor([0.7500]), tensor([[0.7500]]))
    """

    def __init__(self, patches: Tensor, side: int, device: torch.device | None = None) -> None:
        self._patches, self._side = patches, side
        self._device = device or patches.device
        self.per_image = side**2
        self._weights = [upsampling_weights(n, side).to(patches) for n in patches.shape[1:3]]
        # Each pixel lies between two patches along an axis: their weights and places [side, 2].
        self._nearest = [weights.topk(min(2, weights.shape[1])) for weights in self._weights]

    def __len__(self) -> int:
        return len(self._patches) * self.per_image

    def of_images(self, first: int, last: int) -> Tensor:
        """All pixels of images first to last - 1, float32 [pixels, k], on `device`."""
        rows, columns = (weights.to(self._device) for weights in self._weights)
        pixels = torch.einsum("yh,nhwk->nywk", rows, self._patches[first:last].to(self._device))
        pixels = torch.einsum("xw,nywk->nyxk", columns, pixels)
        return pixels.reshape(-1, pixels.shape[-1])

    def rows(self, chosen: Tensor) -> Tensor:
        """Chosen pixels.

        Args:
            chosen: int64 [n], numbers of pixels over all images.

        Returns:
            float32 [n, k], where the patches are.
        """
        image, place = chosen // self.per_image, chosen % self.per_image
        (y_weights, ys), (x_weights, xs) = self._nearest
        y, x = place // self._side, place % self._side
        total = self._patches.new_zeros(len(chosen), self._patches.shape[-1])
        for i in range(ys.shape[1]):
            for j in range(xs.shape[1]):
                weight = y_weights[y, i] * x_weights[x, j]
                total += weight[:, None] * self._patches[image, ys[y, i], xs[x, j]]
        return total
