from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from franca_fast.data.davis import open_davis
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.label_propagation import label_map, propagate_labels
from franca_fast.evaluation.dense.video import (
    VideoSettings,
    first_labels,
    frame_size,
    video,
)
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.protocol import Reading
from python_tests.data.benchmark_trees import moving_squares, save_palette, write_davis
from python_tests.evaluation.dense.patch_colours import PatchColours
from python_tests.evaluation.dense.test_mask_measures import plain_accuracy
from python_tests.evaluation.golden import arrays, values

SETTINGS = VideoSettings(img_size=56, n_last_frames=2, radius=3, top_k=3)
PATCH = 7


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    videos = {"surf": moving_squares(6), "bear": moving_squares(4, (70, 56))}
    return write_davis(tmp_path / "DAVIS", videos)


def plain_scores(tree: Path, name: str, width: int, settings: VideoSettings) -> list[list[float]]:
    """J and F of each object of a video, from the files on."""
    files = sorted((tree / "JPEGImages/480p" / name).iterdir())
    paths = sorted((tree / "Annotations/480p" / name).iterdir())
    masks = [np.array(Image.open(path)) for path in paths]
    features = []
    for file in files:
        with Image.open(file) as image:
            shorter = min(image.size)
            size = [int(side * settings.img_size / shorter) // PATCH * PATCH for side in image.size]
            levels = np.array(image.resize(tuple(size), Image.Resampling.BILINEAR)) / 255
        levels = (levels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        h, w = size[1] // PATCH, size[0] // PATCH
        colours = levels.reshape(h, PATCH, w, PATCH, 3).mean((1, 3))
        tokens = torch.from_numpy(colours) @ PatchColours().matrix.double()
        features.append(F.normalize(tokens[..., :width], dim=-1).float())
    height, wide = masks[0].shape
    # The nearest pixel of a patch is that at its middle.
    rows = ((np.arange(h) + 0.5) * height / h).astype(int)
    columns = ((np.arange(w) + 0.5) * wide / w).astype(int)
    small = masks[0][rows][:, columns]
    n = int(masks[0][masks[0] < 255].max())
    soft = [torch.from_numpy(np.stack([small % 255 == k for k in range(n + 1)])).float()]
    measured: list[list[list[float]]] = [[[], []] for _ in range(n)]
    for t in range(1, len(files) - 1):
        used = [0, *range(max(1, t - settings.n_last_frames), t)]
        soft.append(
            propagate_labels(
                features[t],
                torch.stack([features[i] for i in used]),
                torch.stack([soft[i] for i in used]),
                radius=settings.radius,
                top_k=settings.top_k,
                temperature=settings.temperature,
            )
        )
        labels = label_map(soft[t], PATCH).numpy()
        ys = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
        xs = ((np.arange(wide) + 0.5) * labels.shape[1] / wide).astype(int)
        labels = labels[ys][:, xs]
        counted = masks[t] != 255
        for k in range(1, n + 1):
            truth, predicted = (masks[t] == k) & counted, (labels == k) & counted
            union = (truth | predicted).sum()
            measured[k - 1][0].append((truth & predicted).sum() / union if union else 1.0)
            measured[k - 1][1].append(plain_accuracy(truth, predicted))
    return [[100 * float(np.mean(values)) for values in one] for one in measured]


@pytest.mark.parametrize("img_size", [56, 64])
def test_figures_equal_a_plain_computation_at_every_width(tree: Path, img_size: int) -> None:
    # Void pixels in the first and in a later mask, and an object that only a later one has.
    masks = moving_squares(6)
    masks[0][0:14, 70:] = 255
    masks[2][10:30, 20:30] = 255
    masks[3][50:, 60:] = 3
    for t in (0, 2, 3):
        save_palette(masks[t], tree / f"Annotations/480p/surf/{t:05d}.png")
    settings = dataclasses.replace(SETTINGS, img_size=img_size)
    encoder = PatchColours(PATCH)
    result = video(encoder, tree, settings, dims=[2, 6])
    assert encoder.seen == 5 + 3  # the last frames are not needed
    assert result.data["data"] == {"images": 10, "videos": 2, "objects": 4}
    for width in (2, 6):
        expected = {}
        for name in ("bear", "surf"):
            for k, (region, contour) in enumerate(plain_scores(tree, name, width, settings), 1):
                expected[f"{name}_{k}"] = {"J": region, "F": contour}
        found = result.details[str(width)]
        assert found.keys() == expected.keys()
        for name, scores in expected.items():
            assert found[name] == pytest.approx(scores, abs=1e-6)
        region, contour = (np.mean([one[of] for one in expected.values()]) for of in "JF")
        figures = {"J&F": (region + contour) / 2, "J": region, "F": contour}
        assert result.figures[width] == pytest.approx(figures, abs=1e-6)
    assert 20 < result.figures[6]["J&F"] < 100


def test_golden_labels_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole protocol on the golden features: first labels, frames that are used, maps."""
    settings = values()["video"]["settings"]
    h, w = settings["grid"]
    first = arrays()["video.first_seg"][0].argmax(0).numpy()
    masks = [np.kron(first, np.ones((settings["patch"],) * 2)).astype(np.int64)]
    masks += [np.zeros_like(masks[0])] * settings["frames"]
    tree = write_davis(tmp_path, {"a": masks})
    module = importlib.import_module("franca_fast.evaluation.dense.video")
    features = arrays()["video.features"].unflatten(1, (h, w))
    maps, soft = [], []

    def grids(_encoder, items, *_unused):
        return ((item, (w * 4, h * 4), features[item[1]]) for item in items)

    def kept_map(labels: torch.Tensor, patch_size: int) -> torch.Tensor:
        soft.append(labels)
        maps.append(label_map(labels, patch_size))
        return maps[-1]

    monkeypatch.setattr(module, "image_grids", grids)
    monkeypatch.setattr(module, "label_map", kept_map)
    chosen = VideoSettings(
        n_last_frames=settings["n_last_frames"],
        radius=settings["radius"],
        top_k=settings["topk"],
        temperature=settings["temperature"],
    )
    video(PatchColours(settings["patch"]), tree, chosen)
    torch.testing.assert_close(torch.stack(soft), arrays()["video.soft"], atol=1e-5, rtol=0)
    assert torch.equal(torch.stack(maps), arrays()["video.label_map"].long())


@pytest.mark.parametrize(
    "reading", [Reading(batch_size=1, num_workers=0), Reading(batch_size=3, num_workers=2)]
)
def test_batches_workers_and_the_order_of_videos_change_nothing(
    tree: Path, reading: Reading
) -> None:
    expected = video(PatchColours(PATCH), tree, SETTINGS)
    for data in (tree, open_davis(tree)[::-1]):
        found = video(PatchColours(PATCH), data, SETTINGS, reading=reading)
        assert found.figures[6] == pytest.approx(expected.figures[6])
        assert found.details["6"].keys() == expected.details["6"].keys()


def test_numbers_of_objects_are_only_names(tree: Path) -> None:
    expected = video(PatchColours(PATCH), tree, SETTINGS).figures[6]
    for t, mask in enumerate(moving_squares(6)):
        swapped = np.array([0, 2, 1])[mask]
        save_palette(swapped, tree / f"Annotations/480p/surf/{t:05d}.png")
    assert video(PatchColours(PATCH), tree, SETTINGS).figures[6] == pytest.approx(expected)


def test_the_first_and_the_last_frame_are_not_scored(tree: Path) -> None:
    expected = video(PatchColours(PATCH), tree, SETTINGS).figures
    save_palette(np.zeros((56, 84)), tree / "Annotations/480p/surf/00005.png")
    (tree / "JPEGImages/480p/surf/00005.jpg").write_bytes(b"never read")
    assert video(PatchColours(PATCH), tree, SETTINGS).figures == expected


@pytest.mark.parametrize(
    ("size", "shorter", "patch", "expected"),
    [
        ((854, 480), 480, 16, (848, 480)),
        ((480, 854), 480, 14, (476, 854)),
        ((1920, 1080), 480, 14, (840, 476)),
        ((100, 100), 5, 7, (7, 7)),
    ],
)
def test_sides_are_multiples_of_the_patch(
    size: tuple[int, int], shorter: int, patch: int, expected: tuple[int, int]
) -> None:
    assert frame_size(size, shorter, patch) == expected


def test_first_labels_are_one_at_each_patch() -> None:
    mask = np.zeros((14, 21), np.int64)
    mask[:, 14:], mask[0, 0] = 3, 255
    labels = first_labels(mask, (2, 3))
    assert labels.shape == (4, 2, 3) and torch.equal(labels.sum(0), torch.ones(2, 3))
    assert labels.argmax(0).tolist() == [[0, 0, 3]] * 2


def test_is_run_by_its_name_and_kept_features_are_used(tree: Path, tmp_path: Path) -> None:
    encoder = PatchColours(PATCH)
    reading = Reading(features_cache=tmp_path / "cache")
    given = {"img_size": "56", "radius": "none"}
    first = evaluate("video", encoder, {"data": tree}, given, reading=reading)
    seen = encoder.seen
    again = evaluate("video", encoder, {"data": tree}, given, reading=reading)
    assert first.data["data"]["source"] == [str(tree)]
    assert seen == encoder.seen == 8 and first.figures == again.figures
    assert first.settings.radius is None and list(first.figures[6]) == ["J&F", "J", "F"]


def test_masks_that_do_not_fit_are_refused(tree: Path) -> None:
    save_palette(np.zeros((56, 70)), tree / "Annotations/480p/bear/00000.png")
    with pytest.raises(InputError, match=r"bear/00000\.png': no object; accepted"):
        video(PatchColours(PATCH), tree, SETTINGS)
    save_palette(np.ones((55, 70)), tree / "Annotations/480p/bear/00000.png")
    with pytest.raises(InputError, match="70 x 55 pixels; accepted: the size of its frame"):
        video(PatchColours(PATCH), tree, SETTINGS)


def test_frames_of_several_sizes_are_refused(tree: Path) -> None:
    for kind in ("JPEGImages", "Annotations"):
        for file in (tree / kind / "480p/bear").iterdir():
            if file.stem == "00002":
                with Image.open(file) as image:
                    turned = image.transpose(Image.Transpose.ROTATE_90)
                turned.save(file)
    with pytest.raises(InputError, match=r"'bear': a frame of \(10, 8\) patches, and \(8, 10\)"):
        video(PatchColours(PATCH), tree, SETTINGS)


@pytest.mark.parametrize(
    "given",
    [
        {"img_size": 0},
        {"n_last_frames": -1},
        {"radius": -1},
        {"top_k": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
    ],
)
def test_wrong_settings_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(given))}: .*accepted"):
        VideoSettings(**given)  # type: ignore[arg-type]


def test_no_videos_are_refused() -> None:
    with pytest.raises(InputError, match="no videos"):
        video(PatchColours(PATCH), [], SETTINGS)
