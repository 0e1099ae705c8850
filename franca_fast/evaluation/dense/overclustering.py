"""Overclustering: k-means on pixels' features, scored by what classes the clusters show.

The protocol of Leopart (Ziegler and Asano 2022, arXiv 2204.13101), which Franca's paper follows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from franca_fast.data.segmentation import open_segmentation
from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.clusters.matching import (
    Matching,
    confusion_of,
    hungarian,
    many_to_one_iou,
    many_to_one_precision,
    precision_then_hungarian,
)
from franca_fast.evaluation.dense.clusters.pixel_clusters import KMeans, cluster_counts
from franca_fast.evaluation.dense.clusters.upsampled_pixels import (
    PixelComponents,
    PixelMoments,
    Pixels,
    labels_at,
    pixel_components,
)
from franca_fast.evaluation.dense.patch_grids import check_patch_size, patch_grids
from franca_fast.evaluation.dense.segmentation_score import ABSENT
from franca_fast.evaluation.encoders import Encoder, as_encoder, device_of
from franca_fast.evaluation.extras import need
from franca_fast.evaluation.protocol import (
    Protocol,
    Reading,
    Role,
    Source,
    check_dims,
    on_sources_of,
)
from franca_fast.evaluation.result import Result

_WHOSE = "overclustering"
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class OverclusteringSettings:
    """Settings of overclustering.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> OverclusteringSettings(ks=(0, 100)).pixels
        100
    """

    ks: tuple[int, ...] = (100, 300)  # numbers of clusters; 0 stands for the number of classes
    img_size: int = 448  # side in pixels of the square that images become
    pixels: int = 100  # side of the square to which features and masks are resized
    components: int = 50  # principal components that are kept; at most the width
    iterations: int = 50  # of k-means
    restarts: int = 5  # of k-means; the best of them counts
    # Pixels that k-means learns from, at most, for each cluster: faiss's default, which the
    # originals use without saying so; none takes all pixels. All are assigned to clusters.
    points_per_cluster: int | None = 256
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of k-means; figures are means
    # A class that no mask shows is "left out" of the mean, or counts as "zero", as in the originals
    absent: str = "left out"
    # Patch features are held in memory up to so many GB; if they are more, images are encoded twice
    cache_gb: float = 8.0

    def __post_init__(self) -> None:
        if not self.ks or len(set(self.ks)) < len(self.ks) or min(self.ks) < 0:
            raise InputError(
                f"ks: {self.ks}; accepted: one or more different numbers, 0 for that of classes"
            )
        for name in ("img_size", "pixels", "components", "iterations", "restarts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: 1 or more")
        if self.points_per_cluster is not None and self.points_per_cluster < 1:
            raise InputError(
                f"points_per_cluster: {self.points_per_cluster}; accepted: 1 or more, or none"
            )
        distinct = len(set(self.seeds)) == len(self.seeds)
        if not self.seeds or not distinct or not all(0 <= seed < 2**31 for seed in self.seeds):
            raise InputError(
                f"seeds: {self.seeds}; accepted: one or more different numbers, 0 to 2^31 - 1"
            )
        if self.absent not in ABSENT:
            raise InputError(f"absent: '{self.absent}'; accepted: {', '.join(ABSENT)}")
        if not self.cache_gb >= 0:
            raise InputError(f"cache_gb: {self.cache_gb}; accepted: 0 or more")

    @property
    def kmeans(self) -> KMeans:
        """Those of k-means."""
        return KMeans(self.iterations, self.restarts, self.points_per_cluster)


def overclustering(
    encoder: Encoder | Source,
    test: SegmentedImages | Source,
    settings: OverclusteringSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """Clusters the pixels of all images and matches clusters with classes.

    Patch features are upsampled bilinearly to 100 x 100 pixels, standardised, and reduced to 50
    principal components. Mean, covariance and components are exact, those of all pixels, in
    float64; they are found from the patches, so that pixels need not be held. K-means is faiss's
    (not spherical). Pixels without a class take part in everything but the score.

    Args:
        encoder: with patch tokens, on its device; or what `load_model` takes.
        test: images with masks, or what `open_segmentation` takes.
        settings: None takes the protocol's.
        dims: widths; None takes the full width only. The images are encoded once for all.
        reading: how images are read.

    Returns:
        per cent, means over seeds with their standard errors. For K clusters, more than classes:
        "mIoU K=100", clusters matched by precision, then Hungarian (the paper's text, see
        `precision_then_hungarian`), and beside it "mIoU K=100 many-to-one IoU" and "mIoU K=100
        many-to-one precision". With no more clusters than classes, "mIoU K=21" is that of the
        Hungarian matching on IoU.

    Raises:
        InputError: fewer pixels than clusters, no pixel with a class, no patch tokens, faiss or
            scipy is not installed, or what `patch_grids` raises.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=14, img_size=28)
        >>> settings = OverclusteringSettings((0,), img_size=56, pixels=8, iterations=2, seeds=(0,))
        >>> found = overclustering(model, "FashionScenes:split=TEST", settings, dims=(8, 128))
        >>> {width: list(row) for width, row in found.figures.items()}
        {8: ['mIoU K=11'], 128: ['mIoU K=11']}
    """
    need("faiss", _WHOSE)
    need("scipy.optimize", _WHOSE)
    settings, reading = settings or OverclusteringSettings(), reading or Reading()
    encoder = as_encoder(encoder)
    data = test if isinstance(test, SegmentedImages) else open_segmentation(test)
    if not len(data):
        raise InputError("test: no images; accepted: one or more")
    check_patch_size(encoder, settings.img_size)
    ks = tuple(dict.fromkeys(k or data.n_classes for k in settings.ks))
    n_pixels = len(data) * settings.pixels**2
    if max(ks) > n_pixels:
        raise InputError(f"ks: {max(ks)}, of {n_pixels} pixels in all; accepted: at most as many")
    passes = _Passes(encoder, data, settings, dims, reading)
    components = passes.components()
    projected = passes.projected(components)
    labels = _scored(torch.cat(passes.labels), data)
    result = _described(data, settings, ks, labels, passes.held)
    with tqdm(
        total=len(components) * len(ks) * len(settings.seeds),
        unit="clustering",
        disable=None if reading.progress else True,
    ) as bar:
        for width, patches in projected.items():
            pixels = Pixels(patches, settings.pixels, device_of(encoder))
            counts = cluster_counts(
                pixels, labels, data.n_classes, ks, settings.kmeans, settings.seeds, bar.update
            )
            _score(result, width, counts, data.class_names)
            result.details["explained_variance"][str(width)] = components[width].explained
    return result


class _Passes:
    """The two passes over patch features: for the components, then to project by them.

    Between them the features are held, if they fit; else the images are encoded again.

    Attributes:
        labels: of the pixels of each image, int64 [pixels, pixels], after the first pass.
        held: whether features are held.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: SegmentedImages,
        settings: OverclusteringSettings,
        dims: Sequence[int] | None,
        reading: Reading,
    ) -> None:
        self._encoder, self._data, self._reading = encoder, data, reading
        self._settings, self._dims = settings, dims
        self._kept = list[Tensor]()
        self.labels = list[Tensor]()
        self.held = True

    def components(self) -> dict[int, PixelComponents]:
        """Width -> components of the pixels of all images."""
        settings, moments = self._settings, PixelMoments(self._settings.pixels)
        widths: tuple[int, ...] = ()
        for batch in patch_grids(self._encoder, self._data, settings.img_size, self._reading):
            widths = widths or check_dims(self._dims, batch.grids.shape[-1])
            grids = batch.grids[..., : max(widths)]
            self.held = self._bytes(grids) <= settings.cache_gb * 1e9
            if self.held:
                self._kept.append(grids.cpu().clone())
            moments.add(grids)
            self.labels += [labels_at(mask, settings.pixels).flatten() for mask in batch.masks]
        return {width: pixel_components(moments, width, settings.components) for width in widths}

    def projected(self, components: Mapping[int, PixelComponents]) -> dict[int, Tensor]:
        """Width -> components of all patches, float32 [N, h, w, k], on the CPU."""
        found = dict[int, Tensor]()
        first = 0
        for grids in self._again():
            for width, ours in components.items():
                part = ours.project(grids)
                if width not in found:
                    found[width] = torch.empty(len(self._data), *part.shape[1:], device="cpu")
                found[width][first : first + len(part)] = part
            first += len(grids)
        return found

    def _bytes(self, grids: Tensor) -> int:
        return _FLOAT_BYTES * len(self._data) * math.prod(grids.shape[1:])

    def _again(self) -> Iterator[Tensor]:
        if self.held:
            yield from self._kept
            self._kept.clear()
            return
        batches = patch_grids(self._encoder, self._data, self._settings.img_size, self._reading)
        for batch in batches:
            yield batch.grids


def _scored(labels: Tensor, data: SegmentedImages) -> Tensor:
    """Labels with -1 for what is not scored."""
    if data.ignore is not None:
        labels = labels.masked_fill(labels == data.ignore, -1)
    if not (labels >= 0).any():
        raise InputError("test: no pixel with a class; accepted: masks with classes")
    return labels


def _matchings(k: int, n_classes: int) -> dict[str, Matching]:
    """Name of a figure -> how clusters are matched for it."""
    if k <= n_classes:
        return {f"mIoU K={k}": hungarian}
    return {
        f"mIoU K={k}": precision_then_hungarian,
        f"mIoU K={k} many-to-one IoU": many_to_one_iou,
        f"mIoU K={k} many-to-one precision": many_to_one_precision,
    }


def _described(
    data: SegmentedImages,
    settings: OverclusteringSettings,
    ks: Sequence[int],
    labels: Tensor,
    held: bool,
) -> Result:
    """The result without figures."""
    shown = set(labels.unique().tolist())
    return Result(
        "overclustering",
        {},
        settings,
        {"test": {"images": len(data), "classes": data.n_classes, "ignored": data.ignore}},
        details={
            "pixels": len(labels),
            "pixels_without_a_class": int((labels < 0).sum()),
            "classes_without_pixels": [
                name for i, name in enumerate(data.class_names) if i not in shown
            ],
            "pixels_of_the_components": len(labels),
            "pixels_of_kmeans": {
                str(k): len(settings.kmeans.training_pixels(len(labels), k, 0)) for k in ks
            },
            "passes_of_the_network": 1 if held else 2,
            "explained_variance": {},
            "figures_of_seeds": {},
            "iou": {},
        },
    )


def _score(
    result: Result, width: int, counts: Mapping[int, Sequence[Tensor]], names: Sequence[str]
) -> None:
    """Adds the figures of a width."""
    figures, errors = dict[str, float](), dict[str, float]()
    of_seeds, ious = dict[str, list[float]](), dict[str, dict[str, float | None]]()
    for k, each in counts.items():
        for name, match in _matchings(k, len(names)).items():
            confusions = [confusion_of(one, match(one)) for one in each]
            values = [confusion.miou(result.settings.absent) for confusion in confusions]
            figures[name], of_seeds[name] = statistics.fmean(values), values
            if len(values) > 1:
                errors[name] = statistics.stdev(values) / math.sqrt(len(values))
            mean = 100 * torch.stack([confusion.iou() for confusion in confusions]).mean(0)
            shown = (confusions[0].matrix.sum(1) > 0).tolist()
            ious[name] = {
                one: value if there else None
                for one, value, there in zip(names, mean.tolist(), shown, strict=True)
            }
    result.figures[width] = figures
    if errors:
        result.errors[width] = errors
    result.details["figures_of_seeds"][str(width)] = of_seeds
    result.details["iou"][str(width)] = ious


PROTOCOL = Protocol(
    name="overclustering",
    summary="clusters of pixels matched with classes, mIoU",
    settings=OverclusteringSettings,
    roles=(Role("test", "images with masks to cluster", several=False, opens=open_segmentation),),
    run=on_sources_of(overclustering, "test"),
)
