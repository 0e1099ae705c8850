"""K-means on pixels, and the classes of each cluster's pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from franca_fast.evaluation.dense.clusters.upsampled_pixels import Pixels
from franca_fast.evaluation.extras import need

_AT_ONCE = 4  # images whose pixels are assigned to clusters together


@dataclass(frozen=True)
class KMeans:
    """K-means of faiss, on the CPU.

    Attributes:
        iterations: of each start.
        restarts: starts; the one with the smallest sum of squared distances counts.
        points_per_cluster: points that are learned from, at most, for each cluster; None for all.
    """

    iterations: int
    restarts: int
    points_per_cluster: int | None

    def training_pixels(self, n: int, k: int, seed: int) -> Tensor:
        """The pixels that are learned from: all, or `points_per_cluster` * K drawn at random.

        Args:
            n: pixels in all.
            k: number of clusters.
            seed: of the draw.

        Returns:
            int64, ascending.

        Example:
            >>> len(KMeans(50, 5, 256).training_pixels(10_000, 10, seed=0))
            2560
        """
        most = n if self.points_per_cluster is None else self.points_per_cluster * k
        if n <= most:
            return torch.arange(n, device="cpu")
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randperm(n, generator=generator, device="cpu")[:most].sort().values

    def centroids(self, points: Tensor, k: int, seed: int) -> Tensor:
        """Clusters all the points given.

        Args:
            points: float32 [n, d], at least k, on the CPU.
            k: number of clusters.
            seed: of the first centroids.

        Returns:
            float32 [k, d].

        Raises:
            InputError: faiss is not installed.

        Example:
            >>> KMeans(5, 1, None).centroids(torch.tensor([[0.0], [0.2], [4.0]]), 2, 0).sort(0)[0]
            tensor([[0.1000],
                    [4.0000]])
        """
        kmeans = need("faiss", "overclustering").Kmeans(
            points.shape[1],
            k,
            niter=self.iterations,
            nredo=self.restarts,
            seed=seed,
            spherical=False,
            # So that faiss itself neither leaves points out nor warns that there are few.
            max_points_per_centroid=-(-len(points) // k),
            min_points_per_centroid=1,
        )
        kmeans.train(points.contiguous().numpy())
        return torch.from_numpy(kmeans.centroids)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each point.

    Args:
        points: float32 [n, d].
        centroids: float32 [k, d].

    Returns:
        int64 [n].

    Example:
        >>> nearest(torch.tensor([[0.0], [3.0]]), torch.tensor([[4.0], [0.1]]))
        tensor([1, 0])
    """
    return (points @ centroids.T - centroids.square().sum(1) / 2).argmax(1)


def cluster_counts(
    pixels: Pixels,
    labels: Tensor,
    n_classes: int,
    ks: Sequence[int],
    kmeans: KMeans,
    seeds: Sequence[int],
    done: Callable[[], object] = lambda: None,
) -> dict[int, list[Tensor]]:
    """Clusters pixels, and counts how many of each cluster have each class.

    Args:
        pixels: of all images.
        labels: int64 [pixels], a class, or -1 where there is none.
        n_classes: C.
        ks: numbers of clusters K.
        kmeans: how they are found.
        seeds: for each there is a clustering.
        done: called after each clustering.

    Returns:
        K -> for each seed the counts, int64 [K, C].

    Raises:
        InputError: faiss is not installed.
    """
    centroids = {k: list[Tensor]() for k in ks}
    for k in ks:
        for seed in seeds:
            points = pixels.rows(kmeans.training_pixels(len(pixels), k, seed))
            centroids[k].append(kmeans.centroids(points, k, seed))
            done()
    counts = {
        k: [torch.zeros(k * n_classes, dtype=torch.int64, device="cpu") for _ in seeds] for k in ks
    }
    # Pixels are upsampled once for all clusterings.
    for first in range(0, len(pixels) // pixels.per_image, _AT_ONCE):
        some = pixels.of_images(first, first + _AT_ONCE)
        theirs = labels[first * pixels.per_image :][: len(some)].to(some.device)
        some, theirs = some[theirs >= 0], theirs[theirs >= 0]
        for k, each in centroids.items():
            for total, centres in zip(counts[k], each, strict=True):
                places = nearest(some, centres.to(some.device)) * n_classes + theirs
                total += places.bincount(minlength=len(total)).cpu()
    return {k: [one.view(k, n_classes) for one in each] for k, each in counts.items()}
