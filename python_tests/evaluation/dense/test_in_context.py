from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.in_context import (
    PROTOCOL,
    THEIRS,
    InContextSettings,
    in_context,
    open_hummingbird_miou,
)
from franca_fast.evaluation.dense.memory import stream as memory_stream
from franca_fast.evaluation.dense.memory import voting as memory_voting
from franca_fast.evaluation.dense.memory.patch_labels import class_map
from franca_fast.evaluation.dense.segmentation_score import Confusion
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.protocol import Reading
from franca_fast.models import build_backbone
from python_tests.evaluation.dense.in_context_sets import KnownEncoder, KnownImages
from python_tests.evaluation.golden import arrays, values

CASES = ("unbounded.k5", "unbounded.k30", "unbounded.k30.ignore0", "bounded.k5", "bounded.k30")


def golden_sets(ignore: int) -> tuple[KnownImages, KnownImages, KnownEncoder]:
    masks = [
        arrays()[f"hbird.{name}_masks"].numpy().astype(np.int64) for name in ("memory", "test")
    ]
    if ignore == 0:  # they leave 255 out besides, and our sets know one value without a class
        masks = [np.where(mask == 255, 0, mask) for mask in masks]
    features = torch.cat([arrays()["hbird.memory_features"], arrays()["hbird.test_features"]])
    train, test = (KnownImages(list(mask), 6 * i, 4, ignore) for i, mask in enumerate(masks))
    return train, test, KnownEncoder(features, 14)


@pytest.mark.parametrize("case", CASES)
def test_equals_open_hummingbird(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, k = case.split(".")[0], int(case.split(".")[1][1:])
    train, test, encoder = golden_sets(0 if case.endswith("ignore0") else 255)
    noise = arrays()["hbird.bounded.noise"].numpy()
    monkeypatch.setattr(memory_stream, "patch_noise", lambda seed, rank, *_: noise[rank])
    softs, maps = list[Tensor](), list[Tensor]()

    def kept_map(soft: Tensor, size: tuple[int, int]) -> Tensor:
        softs.append(soft.flatten(0, 1))
        maps.append(class_map(soft, size))
        return maps[-1]

    monkeypatch.setattr(memory_voting, "class_map", kept_map)
    settings = InContextSettings(
        img_size=84,
        k=k,
        augmentation=False,
        memory_size=63 if memory == "bounded" else None,
        seeds=(0,),
    )
    result = in_context(encoder, train, test, settings)
    expected = values()["hbird"][case]
    arrays_of = f"hbird.{memory}.k{k}"
    assert (torch.stack(softs) - arrays()[f"{arrays_of}.soft"]).abs().max() < 1e-5
    assert torch.equal(torch.stack(maps), arrays()[f"{arrays_of}.class_map"].long())
    figures = result.figures[32]
    assert figures[THEIRS] == pytest.approx(100 * expected["miou"], abs=1e-4)
    occurring = [
        iou
        for iou, labels in zip(expected["iou_identity"], expected["confusion"], strict=True)
        if sum(labels)
    ]
    assert figures["mIoU"] == pytest.approx(100 * statistics.fmean(occurring), abs=1e-4)
    matching = result.details["matching"]["32"][0]
    assert matching == expected["mapping"]
    names = dict(zip(train.class_names, expected["iou_identity"], strict=True))
    for name, iou in result.details["iou"]["32"].items():
        if iou is None:
            assert case.endswith("ignore0") and name == "class 0"
        else:
            assert iou == pytest.approx(100 * names[name], abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_their_figure_from_their_counts(case: str) -> None:
    expected = values()["hbird"][case]
    confusion = Confusion(4)
    confusion.matrix = torch.tensor(expected["confusion"])
    miou, matching = open_hummingbird_miou(confusion)
    assert miou == pytest.approx(100 * expected["miou_hungarian"], abs=1e-9)
    assert matching == expected["mapping"]
    assert confusion.miou("zero") == pytest.approx(100 * expected["miou_identity"], abs=1e-9)


def test_their_matching_is_from_predictions_to_classes() -> None:
    confusion = Confusion(3)
    for label, predicted, pixels in ((0, 2, 5), (1, 0, 6), (2, 1, 7), (2, 2, 5)):
        confusion.matrix[label, predicted] = pixels
    miou, matching = open_hummingbird_miou(confusion)
    assert matching == [1, 2, 0]
    assert miou == pytest.approx(100 * (1 + 7 / 12 + 5 / 10) / 3)


def random_set(
    n: int, first: int, n_classes: int, size: tuple[int, int], ignore: int | None
) -> KnownImages:
    rng = np.random.default_rng(first)
    coarse = rng.integers(n_classes, size=(n, -(-size[0] // 6), -(-size[1] // 6)))
    masks = np.kron(coarse, np.ones((1, 6, 6), np.int64))[:, : size[0], : size[1]]
    if ignore == 255:
        masks[rng.random(masks.shape) < 0.1] = 255
    return KnownImages(list(masks), first, n_classes, ignore)


def plain_miou(
    features: Tensor,
    train: KnownImages,
    test: KnownImages,
    grid: int,
    patch: int,
    k: int,
    temperature: float,
) -> float:
    """The whole protocol without augmentation, in float64, patch by patch and pixel by pixel."""
    n_classes, size = train.n_classes, grid * patch
    unit = (features.double() / features.double().norm(dim=2, keepdim=True)).numpy()
    memory = []
    for i in range(len(train)):
        mask = train.load(i)[1]
        for p in range(grid * grid):
            label = [0.0] * n_classes
            for y in range(patch):
                for x in range(patch):
                    row = (p // grid * patch + y) * mask.shape[0] // size
                    column = (p % grid * patch + x) * mask.shape[1] // size
                    value = int(mask[row, column])
                    label[value if value < n_classes else 0] += 1 / patch**2
            memory.append((unit[i, p], label))
    union, intersection = [0] * n_classes, [0] * n_classes
    shown = set[int]()
    for i in range(len(test)):
        mask = test.load(i)[1]
        soft = torch.zeros(grid * grid, n_classes, dtype=torch.float64)
        for p in range(grid * grid):
            query = unit[len(train) + i, p]
            near = [(-float(query @ key), label) for key, label in memory]
            near = sorted(near, key=lambda pair: pair[0])[:k]  # of equal ones the first
            votes = [math.exp(-s / temperature) for s, _ in near]
            for vote, (_, label) in zip(votes, near, strict=True):
                for c in range(n_classes):
                    soft[p, c] += vote / sum(votes) * label[c]
        planes = soft.view(1, grid, grid, n_classes).permute(0, 3, 1, 2)
        large = torch.nn.functional.interpolate(planes, mask.shape, mode="bilinear")[0].numpy()
        for y, x in np.ndindex(*mask.shape):
            true, found = int(mask[y, x]), int(large[:, y, x].argmax())
            if true == test.ignore:
                continue
            shown.add(true)
            union[true] += 1
            if true == found:
                intersection[true] += 1
            else:
                union[found] += 1
    return 100 * statistics.fmean(intersection[c] / union[c] for c in shown)


@pytest.mark.parametrize(
    ("n_train", "n_test", "grid", "patch", "n_classes", "size", "ignore", "d", "k"),
    [
        (3, 2, 3, 4, 5, (17, 23), 255, 7, 4),
        (1, 1, 1, 5, 2, (9, 6), None, 3, 9),
        (4, 1, 2, 3, 3, (12, 12), 0, 1, 2),
        (2, 3, 4, 2, 9, (31, 8), 255, 16, 30),
    ],
)
def test_equals_a_plain_computation(
    n_train: int,
    n_test: int,
    grid: int,
    patch: int,
    n_classes: int,
    size: tuple[int, int],
    ignore: int | None,
    d: int,
    k: int,
) -> None:
    train = random_set(n_train, 0, n_classes, size, ignore)
    test = random_set(n_test, n_train, n_classes, size, ignore)
    features = torch.randn(n_train + n_test, grid * grid, d)
    settings = InContextSettings(img_size=grid * patch, k=k, temperature=0.1, augmentation=False)
    found = in_context(KnownEncoder(features, patch), train, test, settings)
    expected = plain_miou(features, train, test, grid, patch, k, 0.1)
    assert found.figures[d]["mIoU"] == pytest.approx(expected, abs=1e-9)


def some(n_classes: int = 5, ignore: int | None = 255) -> tuple[KnownImages, KnownImages]:
    return (
        random_set(4, 0, n_classes, (17, 23), ignore),
        random_set(3, 4, n_classes, (17, 23), ignore),
    )


FEATURES = torch.randn(7, 9, 16, generator=torch.Generator().manual_seed(2))
PLAIN = InContextSettings(img_size=12, k=5, augmentation=False)


def test_widths_are_those_of_features_that_are_cut_and_the_network_runs_once() -> None:
    train, test = some()
    encoder = KnownEncoder(FEATURES, 4)
    both = in_context(encoder, train, test, PLAIN, dims=[4, 16])
    assert encoder.images_seen == 1 + 7  # of which one is empty and tells the width
    for m in (4, 16):
        alone = in_context(KnownEncoder(FEATURES[..., :m].clone(), 4), train, test, PLAIN)
        assert alone.figures[m] == both.figures[m]
    assert both.figures[4] != both.figures[16]


class Renamed(KnownImages):
    """With other numbers for the classes."""

    def __init__(self, images: KnownImages, numbers: Sequence[int], keep_names: bool) -> None:
        masks = [images.load(i)[1] for i in range(len(images))]
        table = np.arange(256)
        table[: images.n_classes] = numbers
        super().__init__(
            [table[mask] for mask in masks], images._first, images.n_classes, images.ignore
        )
        if keep_names:
            self.class_names = [
                images.class_names[numbers.index(c)] for c in range(images.n_classes)
            ]


@pytest.mark.parametrize("keep_names", [False, True])
def test_a_permutation_of_classes_changes_nothing(keep_names: bool) -> None:
    train, test = (
        Renamed(images, [0, 1, 2, 3, 4], keep_names=True) for images in some(ignore=None)
    )
    numbers = [3, 0, 4, 1, 2]
    encoder = KnownEncoder(FEATURES, 4)
    straight = in_context(encoder, train, test, PLAIN).figures[16]
    # With names kept the test set alone has other numbers, and is matched by them.
    other = Renamed(test, numbers, keep_names)
    permuted = in_context(
        encoder, train if keep_names else Renamed(train, numbers, False), other, PLAIN
    ).figures[16]
    assert permuted == pytest.approx(straight, abs=1e-9)


def test_ignored_pixels_never_count() -> None:
    train, test = some()
    encoder = KnownEncoder(FEATURES, 4)
    before = in_context(encoder, train, test, PLAIN)
    image = KnownImages([np.full((17, 23), 255)], 6, 5)
    more = KnownImages([*(test.load(i)[1] for i in range(3)), image.load(0)[1]], 4, 5)
    encoder = KnownEncoder(torch.cat([FEATURES, FEATURES[-1:]]), 4)
    after = in_context(encoder, train, more, PLAIN)
    assert after.figures == before.figures


def test_classes_that_no_test_mask_shows_are_left_out() -> None:
    train, test = some()
    wide = [KnownImages([one.load(i)[1] for i in range(len(one))], one._first, 8) for one in some()]
    few = in_context(KnownEncoder(FEATURES, 4), train, test, PLAIN)
    many = in_context(KnownEncoder(FEATURES, 4), *wide, PLAIN)
    assert many.figures[16]["mIoU"] == few.figures[16]["mIoU"]
    assert many.figures[16][THEIRS] == pytest.approx(few.figures[16][THEIRS] * 5 / 8)
    assert [many.details["iou"]["16"][f"class {c}"] for c in (5, 6, 7)] == [None] * 3


def test_seeds_give_means_and_standard_errors() -> None:
    train, test = some()
    settings = InContextSettings(img_size=12, k=5, augmentation=False, memory_size=12)
    encoder = KnownEncoder(FEATURES, 4)
    result = in_context(encoder, train, test, settings)
    alone = [
        in_context(
            encoder,
            train,
            test,
            InContextSettings(img_size=12, k=5, augmentation=False, memory_size=12, seeds=(s,)),
        ).figures[16]["mIoU"]
        for s in range(5)
    ]
    assert result.details["figures_of_seeds"]["16"]["mIoU"] == alone
    assert result.figures[16]["mIoU"] == pytest.approx(statistics.fmean(alone))
    error = statistics.stdev(alone) / math.sqrt(5)
    assert result.errors[16]["mIoU"] == pytest.approx(error) and error > 0
    assert result.details["patches_per_image"] == 3 and result.details["memory_patches"] == 12


def test_one_seed_where_nothing_is_random() -> None:
    result = in_context(KnownEncoder(FEATURES, 4), *some(), PLAIN)
    assert result.details["seeds"] == [0] and result.errors == {}
    assert "one seed" in result.details["remark"]


def test_by_name() -> None:
    model = build_backbone("vit_nano", depth=1, patch_size=14, img_size=28)
    scenes = "FashionScenes:split=TEST"
    with pytest.raises(InputError, match="2 sources of train; accepted: one"):
        evaluate("in-context", model, {"train": [scenes] * 2, "test": scenes})
    assert PROTOCOL.settings().augmentation and PROTOCOL.settings().img_size == 518


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"k": 0}, "k: 0; accepted: 1 or more"),
        ({"img_size": 0}, "img_size: 0; accepted: 1 or more"),
        ({"temperature": 0.0}, "temperature: 0.0; accepted: a positive number"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"memory_gb": -1.0}, "memory_gb: -1.0; accepted: a positive number"),
        ({"memory_size": 0}, "memory_size: 0; accepted: 1 or more, or none"),
        ({"augmentation_epochs": 0}, "augmentation_epochs: 0"),
        ({"augmentation_epochs": 2, "augmentation": False}, "without augmentation"),
        ({"crop_scale": (1.0,)}, r"crop_scale: \(1.0,\); accepted: two numbers"),
        ({"crop_scale": (1.0, 0.5)}, "crop_scale"),
        ({"jitter": 2.0}, "jitter: 2.0"),
        ({"seeds": ()}, r"seeds: \(\)"),
        ({"seeds": (1, 1)}, r"seeds: \(1, 1\); accepted: one or more different numbers"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        InContextSettings(**changes)


def test_wrong_input_is_named() -> None:
    train, test = some()
    encoder = KnownEncoder(FEATURES, 4)
    with pytest.raises(InputError, match="multiple"):
        in_context(encoder, train, test, InContextSettings(img_size=13))
    with pytest.raises(InputError, match="no patch tokens"):
        in_context(torch.nn.Flatten(), train, test, PLAIN)
    with pytest.raises(InputError, match="dims"):
        in_context(encoder, train, test, PLAIN, dims=[17])
    with pytest.raises(InputError, match="test: no images"):
        in_context(encoder, train, KnownImages([], 0, 5), PLAIN)
    with pytest.raises(InputError, match="which train lacks"):
        in_context(encoder, train, random_set(1, 0, 6, (8, 8), 255), PLAIN)
    with pytest.raises(InputError, match="memory_size: 3; accepted: 4 or more"):
        in_context(encoder, train, test, InContextSettings(img_size=12, memory_size=3))
    with pytest.raises(InputError, match="not finite for 'image 00"):
        in_context(KnownEncoder(FEATURES * math.nan, 4), train, test, PLAIN, reading=Reading())
