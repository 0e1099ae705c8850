from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from franca_fast.data.spair import KeypointPair, View, open_spair
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.keypoint_matching import Geometry
from franca_fast.evaluation.dense.keypoints import (
    PROTOCOL,
    KeypointSettings,
    class_recalls,
    draw_pairs,
    keypoints,
    pair_errors,
)
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.protocol import Reading
from python_tests.data.benchmark_trees import save_jpeg, write_spair
from python_tests.evaluation.dense.patch_colours import PatchColours
from python_tests.evaluation.golden import arrays, values

SETTINGS = KeypointSettings(img_size=60, thresholds=(0.1, 0.35))
PATCH = 7  # 60 pixels are padded to 63, 9 patches


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_spair(tmp_path / "SPair-71k", {"cat": 6, "bus": 4})


def plain_grid(view: View, width: int) -> torch.Tensor:
    """Unit features of the padded image, float64 [9, 9, width], step by step."""
    side = max(view.size)
    square = np.full((side, side, 3), 255, np.uint8)
    with Image.open(view.file) as image:
        square[: view.size[1], : view.size[0]] = np.array(image)
    scaled = Image.fromarray(square).resize((60, 60), Image.Resampling.BICUBIC)
    levels = np.array(scaled).astype(float) / 255
    levels = (levels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    padded = np.zeros((63, 63, 3))
    padded[1:61, 1:61] = levels
    colours = padded.reshape(9, 7, 9, 7, 3).mean((1, 3))
    tokens = torch.from_numpy(colours) @ PatchColours().matrix.double()
    return F.normalize(tokens[..., :width], dim=-1)


def plain_errors(pair: KeypointPair, width: int, centred: bool) -> list[float]:
    source, target = (plain_grid(view, width) for view in (pair.source, pair.target))
    left, top, right, bottom = pair.target.box
    scale = max(right - left, bottom - top) / max(pair.target.size)
    errors = []
    for a, b in zip(pair.source.keypoints, pair.target.keypoints, strict=True):
        if centred:
            at, truth = a / max(pair.source.size) * 60, b / max(pair.target.size) * 60
            place = (at + 1) / PATCH - 0.5  # in cells; a pixel of padding
        else:
            at = np.array([int(int(v) * 60 / max(pair.source.size)) for v in a])
            truth = np.array([int(int(v) * 60 / max(pair.target.size)) for v in b])
            place = at / 60 * 8
        x, y = np.clip(place, 0, 8)
        u, v = min(int(x), 7), min(int(y), 7)
        feature = torch.zeros(width, dtype=torch.float64)
        for du in (0, 1):
            for dv in (0, 1):
                weight = (1 - abs(x - u - du)) * (1 - abs(y - v - dv))
                feature += weight * source[v + dv, u + du]
        best = int((target.flatten(0, 1) @ feature).argmax())
        cell = np.array([best % 9, best // 9])
        found = ((cell + 0.5) * PATCH - 1) / 60 if centred else cell / 9
        errors.append(math.dist(found, truth / 60) / scale)
    return errors


def test_figures_equal_a_plain_computation_at_every_width(tree: Path) -> None:
    encoder = PatchColours(PATCH)
    result = keypoints(encoder, tree, SETTINGS, dims=[3, 6])
    assert encoder.seen == 6  # each image once, for both widths
    pairs = open_spair(tree)
    for width in (3, 6):
        for suffix, centred in (("", False), (", cell centres", True)):
            for threshold in SETTINGS.thresholds:
                recalls = {}
                for name in ("bus", "cat"):
                    errors = [
                        error
                        for pair in pairs
                        if pair.class_name == name
                        for error in plain_errors(pair, width, centred)
                    ]
                    recalls[name] = 100 * sum(e < threshold for e in errors) / len(errors)
                figure = f"recall@{threshold:.2f}{suffix}"
                assert result.details[str(width)][figure] == pytest.approx(recalls)
                expected = statistics.fmean(recalls.values())
                assert result.figures[width][figure] == pytest.approx(expected)
    assert 0 < result.figures[6]["recall@0.35"] < 100
    assert result.data["data"]["pairs"] == 10 and result.data["data"]["images"] == 6
    assert result.data["data"]["class_names"] == ["bus", "cat"]
    assert list(PROTOCOL.settings().thresholds) == [0.1] and result.errors == {}


def test_golden_recall_of_pairs() -> None:
    """From keypoints in pixels to the pooled recall."""
    golden = values()["keypoints"]
    size, cells = golden["settings"]["image_size"], golden["settings"]["grid"]
    pairs, errors = [], {}
    for i, scale in enumerate(golden["threshold_scale"]):
        both = golden["visible_in_both"][i]
        points = arrays()["keypoints.keypoints"][i][:, both, :2].double().numpy()
        box = (0.0, 0.0, scale * size, 1.0)
        views = [View(Path(), (size, size), at, box) for at in points]
        pairs.append(KeypointPair(str(i), "cat", *views))
        source, target = arrays()["keypoints.features"][i].movedim(1, -1)
        geometry = Geometry(size, cells, size // cells)
        errors[str(i)] = pair_errors(source, target, pairs[-1], geometry)
        expected = torch.tensor(golden["errors"][i]).double()
        torch.testing.assert_close(errors[str(i)], expected, atol=1e-6, rtol=1e-6)
    recall = class_recalls(pairs, errors, golden["settings"]["threshold"])
    assert recall["cat"] == pytest.approx(golden["recall_at_0.10"])


@pytest.mark.parametrize(
    "reading", [Reading(batch_size=1, num_workers=0), Reading(batch_size=4, num_workers=3)]
)
def test_batches_workers_and_the_order_of_pairs_change_nothing(
    tree: Path, reading: Reading
) -> None:
    expected = keypoints(PatchColours(PATCH), tree, SETTINGS)
    pairs = open_spair(tree)[::-1]
    for data in (tree, pairs):
        found = keypoints(PatchColours(PATCH), data, SETTINGS, reading=reading)
        assert found.figures == expected.figures and found.details == expected.details


def test_draws_depend_on_names_seed_and_class_alone(tree: Path) -> None:
    pairs = open_spair(tree)
    drawn = draw_pairs(pairs, 2, 0)
    assert [pair.class_name for pair in drawn] == ["bus", "bus", "cat", "cat"]
    assert draw_pairs(pairs[::-1], 2, 0) == drawn
    assert draw_pairs([p for p in pairs if p.class_name == "cat"], 2, 0) == drawn[2:]
    assert len({tuple(p.name for p in draw_pairs(pairs, 2, seed)) for seed in range(6)}) > 2
    assert len(draw_pairs(pairs, 5, 0)) == 9 and len(draw_pairs(pairs, None, 0)) == 10


def test_several_seeds_give_the_mean_and_its_error(tree: Path) -> None:
    settings = dataclasses.replace(SETTINGS, pairs_per_class=2, thresholds=(0.35,))
    seeds = (0, 1, 2, 3)
    single = [
        keypoints(PatchColours(PATCH), tree, dataclasses.replace(settings, seeds=(seed,)))
        for seed in seeds
    ]
    alone = [one.figures[6]["recall@0.35"] for one in single]
    assert len(set(alone)) > 1
    encoder = PatchColours(PATCH)
    result = keypoints(encoder, tree, dataclasses.replace(settings, seeds=seeds))
    assert encoder.seen <= 6
    assert result.figures[6]["recall@0.35"] == pytest.approx(np.mean(alone))
    expected = np.std(alone, ddof=1) / 2
    assert result.errors[6]["recall@0.35"] == pytest.approx(expected)


def test_the_same_image_is_found_at_cell_centres(tmp_path: Path) -> None:
    """The upper left corners of cells lie half a cell away, which the second figure mends."""
    generator = np.random.default_rng(0)
    colours = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(colours).resize((56, 56), Image.Resampling.NEAREST).save(file)
    points = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 7 + 3.5
    view = View(file, (56, 56), points, (0.0, 0.0, 8.0, 8.0))
    pairs = [KeypointPair("1", "cat", view, view)]
    settings = KeypointSettings(img_size=56, thresholds=(0.01,))
    figures = keypoints(PatchColours(PATCH), pairs, settings).figures[6]
    assert figures == {"recall@0.01": 0.0, "recall@0.01, cell centres": 100.0}


def test_kept_features_give_the_same(tree: Path, tmp_path: Path) -> None:
    reading = Reading(features_cache=tmp_path / "cache")
    encoder = PatchColours(PATCH)
    first = keypoints(encoder, tree, SETTINGS, reading=reading)
    again = keypoints(encoder, tree, SETTINGS, reading=reading)
    assert encoder.seen == 6 and again.figures == first.figures


def test_is_run_by_its_name(tree: Path) -> None:
    result = evaluate("keypoints", PatchColours(PATCH), {"data": tree}, {"img_size": "60"})
    assert list(result.figures[6]) == ["recall@0.10", "recall@0.10, cell centres"]
    assert result.data["data"]["source"] == [str(tree)]


def test_an_image_of_another_size_than_annotated_is_refused(tree: Path) -> None:
    save_jpeg(Image.new("RGB", (61, 40)), tree / "JPEGImages/cat/2008_000000.jpg")
    with pytest.raises(InputError, match="61 x 40 pixels; accepted: the size in its annotation"):
        keypoints(PatchColours(PATCH), tree, SETTINGS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"img_size": 0}, "img_size: 0"),
        ({"pairs_per_class": 0}, "pairs_per_class: 0"),
        ({"thresholds": ()}, "thresholds"),
        ({"thresholds": (0.1, -1.0)}, "thresholds"),
        ({"seeds": ()}, "seeds: none"),
        ({"thresholds": (0.1, 0.101)}, "accepted: numbers that differ in two digits"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        KeypointSettings(**given)  # type: ignore[arg-type]


def test_wrong_widths_and_no_pairs_are_refused(tree: Path) -> None:
    with pytest.raises(InputError, match="dims"):
        keypoints(PatchColours(PATCH), tree, SETTINGS, dims=[7])
    with pytest.raises(InputError, match="no pairs"):
        keypoints(PatchColours(PATCH), [], SETTINGS)
