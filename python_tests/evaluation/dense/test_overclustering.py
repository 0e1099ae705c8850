from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from franca_fast.data.segmented_images import Mask, SegmentedImages
from franca_fast.errors import InputError
from franca_fast.evaluation import Reading, evaluate
from franca_fast.evaluation.dense.clusters.pixel_clusters import KMeans
from franca_fast.evaluation.dense.overclustering import OverclusteringSettings, overclustering
from franca_fast.evaluation.result import Result
from franca_fast.models import VisionTransformer
from python_tests.evaluation.dense.clusters.test_pixel_clusters import golden_patches
from python_tests.evaluation.golden import arrays, values

PATCH, SIDE = 4, 32  # 8 x 8 patches


class Numbered(SegmentedImages):
    """Images whose one colour is their number."""

    def __init__(self, masks: Mapping[int, np.ndarray], n_classes: int, ignore: int | None) -> None:
        self._masks = dict(masks)
        self.names = [str(number) for number in masks]
        self.class_names = [f"class {i}" for i in range(n_classes)]
        self.ignore = ignore

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        number = int(self.names[i])
        mask = self._masks[number]
        colour = (number, number, number)
        return Image.new("RGB", mask.shape[::-1], colour), mask.astype(np.int64)

    def fingerprint(self) -> str:
        return "\n".join([repr(self), *self.names])


class Looked(nn.Module):
    """Gives the tokens that belong to the number of an image."""

    patch_size = PATCH

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens)
        self.seen = 0

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        numbers = ((images[:, 0, 0, 0] * 0.229 + 0.485) * 255).round().long()
        self.seen += len(images)
        return {"x_norm_patchtokens": self.tokens[numbers % len(self.tokens)]}


GOLDEN = OverclusteringSettings(
    ks=(0, 12, 20), img_size=SIDE, components=10, seeds=(1, 2, 3), iterations=20, restarts=2
)
SMALL = OverclusteringSettings(
    ks=(0, 7), img_size=SIDE, pixels=16, components=5, seeds=(0, 1), iterations=5, restarts=1
)


def golden_case(void: int = 255) -> tuple[Looked, Numbered]:
    masks = arrays()["overcluster.masks"].numpy()
    masks = np.where(masks == 255, void, masks)
    return Looked(arrays()["overcluster.tokens"]), Numbered(dict(enumerate(masks)), 5, void)


def random_case(n: int = 5, n_classes: int = 3) -> tuple[Looked, Numbered]:
    """Patches that tell their classes, with noise."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, n_classes, (n, 8, 8))
    centres = 2 * generator.standard_normal((n_classes, 12))
    tokens = centres[labels] + generator.standard_normal((n, 8, 8, 12))
    masks = {i: mask.repeat(3, 0).repeat(3, 1) for i, mask in enumerate(labels)}
    for mask in masks.values():
        mask[:3] = 255
    encoder = Looked(torch.from_numpy(tokens).float().flatten(1, 2))
    return encoder, Numbered(masks, n_classes, 255)


def same(one: Result, other: Result) -> bool:
    return (one.figures, one.errors, one.details["iou"]) == (
        other.figures,
        other.errors,
        other.details["iou"],
    )


def test_golden_figures_from_the_golden_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but k-means itself, whose centroids depend on the pixels that it draws."""
    _, signs = golden_patches()
    monkeypatch.setattr(KMeans, "centroids", lambda _, points, k, seed: golden_centroids(k) * signs)
    encoder, data = golden_case()
    found = overclustering(encoder, data, GOLDEN).figures[24]
    golden = values()["overcluster"]["compute"]
    assert found == pytest.approx(
        {
            "mIoU K=5": 100 * golden["5"],
            **{f"mIoU K={k}": 100 * golden[f"{k}_prec"] for k in (12, 20)},
            **{f"mIoU K={k} many-to-one IoU": 100 * golden[f"{k}"] for k in (12, 20)},
            **{f"mIoU K={k} many-to-one precision": 100 * golden[f"{k}_prec"] for k in (12, 20)},
        },
        abs=1e-2,  # 1e-4 of the whole
    )


def golden_centroids(k: int) -> Tensor:
    return arrays()[f"overcluster.k{k}.centroids"]


def test_the_clusters_of_kmeans_are_as_good_as_the_golden_ones() -> None:
    encoder, data = golden_case()
    found = overclustering(encoder, data, GOLDEN)
    golden = values()["overcluster"]["compute"]
    for k in (12, 20):  # with five clusters seeds differ by 30 per cent
        theirs = 100 * golden[f"{k}"]
        assert found.figures[24][f"mIoU K={k} many-to-one IoU"] == pytest.approx(theirs, abs=4)
        assert 0 < found.errors[24][f"mIoU K={k} many-to-one IoU"] < 3


def test_perfect_features_give_a_perfect_score() -> None:
    generator = np.random.default_rng(0)
    labels = np.stack([generator.permuted(np.arange(64) % 3).reshape(8, 8) for _ in range(4)])
    tokens = torch.eye(3).repeat(1, 4)[torch.from_numpy(labels)].flatten(1, 2)
    settings = dataclasses.replace(SMALL, pixels=8, ks=(0,), restarts=3)
    data = Numbered(dict(enumerate(labels)), 3, None)
    assert overclustering(Looked(tokens), data, settings).figures == {12: {"mIoU K=3": 100.0}}


def test_means_errors_and_details() -> None:
    encoder, data = random_case()
    result = overclustering(encoder, data, SMALL)
    name = "mIoU K=7"
    of_seeds = result.details["figures_of_seeds"]["12"][name]
    assert len(of_seeds) == 2 and result.figures[12][name] == statistics.fmean(of_seeds)
    assert result.errors[12][name] == pytest.approx(abs(of_seeds[0] - of_seeds[1]) / 2)
    mean = statistics.fmean(result.details["iou"]["12"][name].values())
    assert mean == pytest.approx(result.figures[12][name])
    assert result.data == {"test": {"images": 5, "classes": 3, "ignored": 255}}
    details = result.details
    assert details["pixels"] == 5 * 256 and details["pixels_without_a_class"] == 5 * 2 * 16
    assert details["pixels_of_kmeans"] == {"3": 768, "7": 1280}
    assert 0.5 < details["explained_variance"]["12"] < 1
    one = overclustering(encoder, data, dataclasses.replace(SMALL, seeds=(1,)))
    assert one.errors == {} and one.figures[12][name] == of_seeds[1]


def test_all_widths_come_from_one_pass_and_equal_those_alone() -> None:
    encoder, data = random_case()
    together = overclustering(encoder, data, SMALL, dims=(2, 7, 12))
    assert encoder.seen == len(data) and together.details["passes_of_the_network"] == 1
    for width in (2, 7, 12):
        cut = Looked(encoder.tokens[..., :width].detach())
        alone = overclustering(cut, data, SMALL)
        assert alone.figures[width] == together.figures[width]
        assert alone.details["iou"][str(width)] == together.details["iou"][str(width)]


def test_features_that_are_not_held_are_computed_twice() -> None:
    encoder, data = random_case()
    held = overclustering(encoder, data, SMALL, dims=(4, 12))
    encoder.seen = 0
    bytes_of_all = 4 * 5 * 64 * 12
    for gigabytes, passes in (((bytes_of_all + 1) / 1e9, 1), ((bytes_of_all - 1) / 1e9, 2)):
        settings = dataclasses.replace(SMALL, cache_gb=gigabytes)
        again = overclustering(encoder, data, settings, dims=(4, 12))
        assert same(again, held) and again.details["passes_of_the_network"] == passes
        assert encoder.seen == passes * len(data)
        encoder.seen = 0


@pytest.mark.parametrize("reading", [Reading(1, 0), Reading(2, 3), Reading(64, 1)])
def test_batches_and_threads_change_nothing(reading: Reading) -> None:
    encoder, data = random_case()
    expected = overclustering(encoder, data, SMALL, reading=Reading(3, 2))
    assert same(overclustering(encoder, data, SMALL, reading=reading), expected)


def test_features_on_disk_change_nothing(tmp_path: Path) -> None:
    encoder, data = random_case()
    expected = overclustering(encoder, data, SMALL)
    reading = Reading(2, features_cache=tmp_path)
    for _ in range(2):
        assert same(overclustering(encoder, data, SMALL, reading=reading), expected)
    encoder.seen = 0
    assert same(overclustering(encoder, data, SMALL, reading=reading), expected)
    assert encoder.seen == 0


def test_the_order_of_images_changes_only_the_draw() -> None:
    encoder, data = random_case()
    settings = dataclasses.replace(
        SMALL, ks=(0,), points_per_cluster=None, iterations=100, restarts=10
    )
    backwards = Numbered({i: data._masks[i] for i in reversed(range(5))}, 3, 255)
    one, other = (overclustering(encoder, each, settings) for each in (data, backwards))
    assert one.figures[12]["mIoU K=3"] == pytest.approx(other.figures[12]["mIoU K=3"], abs=0.1)


def test_names_of_classes_change_nothing() -> None:
    encoder, data = random_case()
    table = np.arange(256)
    table[:3] = [2, 0, 1]
    renamed = Numbered({i: table[mask] for i, mask in data._masks.items()}, 3, 255)
    one, other = (overclustering(encoder, each, SMALL) for each in (data, renamed))
    for name, value in one.figures[12].items():
        assert other.figures[12][name] == pytest.approx(value)
    ious = [result.details["iou"]["12"]["mIoU K=3"] for result in (one, other)]
    for i, j in enumerate((2, 0, 1)):
        assert ious[0][f"class {i}"] == pytest.approx(ious[1][f"class {j}"])


def test_void_pixels_never_count_but_are_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = random_case()
    expected = overclustering(encoder, data, SMALL)
    other_number = Numbered(
        {i: np.where(mask == 255, 77, mask) for i, mask in data._masks.items()}, 3, 77
    )
    assert same(overclustering(encoder, other_number, SMALL), expected)
    found, centroids = list[Tensor](), KMeans.centroids

    def spied(kmeans: KMeans, points: Tensor, k: int, seed: int) -> Tensor:
        found.append(centroids(kmeans, points, k, seed))
        return found[-1]

    monkeypatch.setattr(KMeans, "centroids", spied)
    with_a_class = Numbered(
        {i: np.where(mask == 255, 1, mask) for i, mask in data._masks.items()}, 3, None
    )
    assert same(overclustering(encoder, data, SMALL), expected)
    assert not same(overclustering(encoder, with_a_class, SMALL), expected)
    assert len(found) == 8 and all(map(torch.equal, found[:4], found[4:]))


def test_an_ignored_class_is_left_out() -> None:
    """As label 0 of ADE20K."""
    encoder, data = random_case()
    data.ignore = 0
    data._masks = {i: np.where(mask == 255, 1, mask) for i, mask in data._masks.items()}
    result = overclustering(encoder, data, SMALL)
    assert result.details["classes_without_pixels"] == ["class 0"]
    ious = result.details["iou"]["12"]["mIoU K=3"]
    assert ious["class 0"] is None
    mean = statistics.fmean([ious["class 1"], ious["class 2"]])
    assert result.figures[12]["mIoU K=3"] == pytest.approx(mean)


def test_a_class_without_pixels_is_left_out_or_counts_as_zero() -> None:
    encoder, data = random_case()
    data.class_names.append("never")
    results = {
        absent: overclustering(encoder, data, dataclasses.replace(SMALL, ks=(7,), absent=absent))
        for absent in ("left out", "zero")
    }
    for name, value in results["left out"].figures[12].items():
        assert results["zero"].figures[12][name] == pytest.approx(0.75 * value)
    assert results["left out"].details["classes_without_pixels"] == ["never"]


def test_by_name_on_scenes() -> None:
    model = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    settings = {"ks": "0,12", "img_size": "56", "pixels": "20", "seeds": "0", "iterations": "3"}
    sources = {"test": "FashionScenes:split=TEST"}
    result = evaluate("overclustering", model, sources, settings, dims=(8, 32))
    assert list(result.figures) == [8, 32] and result.protocol == "overclustering"
    assert list(result.figures[8])[:2] == ["mIoU K=11", "mIoU K=12"]
    assert 1 < result.figures[32]["mIoU K=11"] < 60


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ks": ()}, "ks: \\(\\); accepted"),
        ({"ks": (5, 5)}, "ks: \\(5, 5\\); accepted"),
        ({"ks": (-1,)}, "ks: \\(-1,\\); accepted"),
        ({"pixels": 0}, "pixels: 0; accepted: 1 or more"),
        ({"components": 0}, "components: 0; accepted: 1 or more"),
        ({"restarts": 0}, "restarts: 0; accepted: 1 or more"),
        ({"points_per_cluster": 0}, "points_per_cluster: 0; accepted: 1 or more, or none"),
        ({"seeds": ()}, "seeds: \\(\\); accepted"),
        ({"seeds": (2**31,)}, "seeds: \\(2147483648,\\); accepted"),
        ({"absent": "one"}, "absent: 'one'; accepted: left out, zero"),
        ({"cache_gb": float("nan")}, "cache_gb: nan; accepted"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverclusteringSettings(**changed)  # type: ignore[arg-type]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, data = random_case()
    with pytest.raises(InputError, match="ks: 2000, of 1280 pixels in all; accepted: at most"):
        overclustering(encoder, data, dataclasses.replace(SMALL, ks=(2000,)))
    with pytest.raises(InputError, match="dims: \\(13,\\); accepted: each from 1 to the width 12"):
        overclustering(encoder, data, SMALL, dims=(13,))
    with pytest.raises(InputError, match="img_size: 30; accepted"):
        overclustering(encoder, data, dataclasses.replace(SMALL, img_size=30))
    with pytest.raises(InputError, match="encoder: no patch tokens"):
        overclustering(nn.Flatten(), data, SMALL)
    with pytest.raises(InputError, match="test: no images"):
        overclustering(encoder, Numbered({}, 3, None), SMALL)
    with pytest.raises(InputError, match="2 sources of test; accepted: one"):
        evaluate("overclustering", encoder, {"test": ["FashionScenes:split=TEST"] * 2})
    void = Numbered({0: np.full((8, 8), 255)}, 3, 255)
    with pytest.raises(InputError, match="test: no pixel with a class"):
        overclustering(encoder, void, SMALL)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match=r"overclustering needs faiss-cpu.*franca-fast\[eval\]"):
        overclustering(encoder, data, SMALL)
