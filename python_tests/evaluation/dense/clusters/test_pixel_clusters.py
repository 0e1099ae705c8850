from __future__ import annotations

import pytest
import torch
from torch import Tensor

from franca_fast.evaluation.dense.clusters.pixel_clusters import KMeans, cluster_counts, nearest
from franca_fast.evaluation.dense.clusters.upsampled_pixels import (
    PixelMoments,
    Pixels,
    pixel_components,
)
from python_tests.evaluation.golden import arrays


def golden_patches() -> tuple[Tensor, Tensor]:
    """Components of the golden patches, and the signs with which they are the golden ones."""
    grids = arrays()["overcluster.tokens"].view(2, 8, 8, 24)
    moments = PixelMoments(100)
    moments.add(grids)
    patches = pixel_components(moments, 24, 10).project(grids)
    rows = Pixels(patches, 100).rows(arrays()["overcluster.rows"])
    return patches, (rows * arrays()["overcluster.pca_rows"]).sum(0).sign()


def golden_pixels() -> Pixels:
    patches, signs = golden_patches()
    return Pixels(patches * signs, 100)


def random_pixels(n: int = 3, side: int = 9, d: int = 4) -> Pixels:
    generator = torch.Generator().manual_seed(0)
    return Pixels(torch.randn(n, 4, 4, d, generator=generator), side)


def objective(points: Tensor, centroids: Tensor) -> float:
    return float(torch.cdist(points, centroids).square().min(1).values.sum())


@pytest.mark.parametrize("k", [5, 12, 20])
def test_golden_assignments(k: int) -> None:
    found = nearest(golden_pixels().of_images(0, 2), arrays()[f"overcluster.k{k}.centroids"])
    expected = arrays()[f"overcluster.k{k}.assignments"].flatten().long()
    assert int((found != expected).sum()) <= 2  # rounding ties


@pytest.mark.parametrize("k", [5, 12, 20])
def test_clusters_are_as_tight_as_the_golden_ones(k: int) -> None:
    pixels = golden_pixels()
    points = pixels.of_images(0, 2)
    theirs = objective(points, arrays()[f"overcluster.k{k}.centroids"])
    ours = objective(
        points,
        KMeans(50, 5, 256).centroids(
            pixels.rows(KMeans(50, 5, 256).training_pixels(len(pixels), k, 1)), k, 1
        ),
    )
    assert ours < 1.02 * theirs  # other pixels were drawn


def test_kmeans_is_lloyds() -> None:
    """No point is left out: each centroid is the mean of all points that are nearest to it."""
    points = random_pixels(8, 20).of_images(0, 8)
    centroids = KMeans(200, 2, 1).centroids(points, 6, 0)
    clusters = nearest(points, centroids)
    for i, centre in enumerate(centroids):
        assert torch.allclose(points[clusters == i].mean(0), centre, atol=2e-3)


def test_restarts_keep_the_best() -> None:
    points = random_pixels(8, 20).of_images(0, 8)
    few, many = (objective(points, KMeans(10, n, None).centroids(points, 12, 3)) for n in (1, 10))
    assert many < few


def test_seeds_and_their_repetition() -> None:
    points = random_pixels().of_images(0, 3)
    kmeans = KMeans(3, 1, None)
    first, again, other = (kmeans.centroids(points, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pixels_that_are_learned_from() -> None:
    drawn = KMeans(1, 1, 10).training_pixels(1000, 5, 0)
    assert len(drawn) == len(drawn.unique()) == 50 and torch.equal(drawn, drawn.sort().values)
    assert 0 <= drawn.min() < 100 and 900 < drawn.max() < 1000
    assert not torch.equal(drawn, KMeans(1, 1, 10).training_pixels(1000, 5, 1))
    for all_of_them in (KMeans(1, 1, None), KMeans(1, 1, 200)):
        everything = all_of_them.training_pixels(1000, 5, 0)
        assert torch.equal(everything, torch.arange(1000))


def test_nearest_by_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centroids = (torch.randn(n, 3, generator=generator) for n in (40, 7))
    expected = []
    for point in points.tolist():
        distances = [
            sum((a - b) ** 2 for a, b in zip(point, centre, strict=True))
            for centre in centroids.tolist()
        ]
        expected.append(distances.index(min(distances)))
    assert nearest(points, centroids).tolist() == expected


def test_counts_by_plain_loops() -> None:
    pixels, generator = random_pixels(6), torch.Generator().manual_seed(1)
    labels = torch.randint(-1, 3, (len(pixels),), generator=generator)
    kmeans, done = KMeans(4, 2, 5), list[int]()
    found = cluster_counts(pixels, labels, 3, (4, 7), kmeans, (0, 5), lambda: done.append(1))
    assert list(found) == [4, 7] and len(done) == 4
    points = pixels.of_images(0, 6)
    for k in (4, 7):
        for seed, counts in zip((0, 5), found[k], strict=True):
            drawn = kmeans.training_pixels(len(pixels), k, seed)
            clusters = nearest(points, kmeans.centroids(pixels.rows(drawn), k, seed)).tolist()
            expected = torch.zeros(k, 3, dtype=torch.int64)
            for cluster, label in zip(clusters, labels.tolist(), strict=True):
                if label >= 0:
                    expected[cluster, label] += 1
            assert torch.equal(counts, expected)
