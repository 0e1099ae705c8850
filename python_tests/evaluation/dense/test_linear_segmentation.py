"""The whole protocol against torch's own modules in a plain loop, and what must not matter."""

from __future__ import annotations

import math
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from franca_fast.data import open_segmentation
from franca_fast.data.numbered_images import shuffled_without_end
from franca_fast.data.transform import normalised
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.linear_segmentation import linear_segmentation
from franca_fast.evaluation.dense.probe.crops import CropSize, random_crop, scaled_size
from franca_fast.evaluation.dense.probe.heads import SegmentationHeads, dropout
from franca_fast.evaluation.dense.probe.recipes import LinearSegmentationSettings
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.protocol import Reading
from franca_fast.evaluation.result import Result

PATCH, CROP, STRIDE = 4, 16, 8
COLOURS = np.array([[200, 60, 50], [40, 200, 70], [60, 50, 210], [180, 180, 60]])
NAMES = ("red", "green", "blue", "yellow", "never")
# Smaller than the crop, of no multiple of anything, and long.
SIZES = [(24, 20), (11, 13), (9, 50), (37, 17), (16, 16)]
SMALL: dict[str, Any] = {
    "iterations": 6,
    "batch_size": 3,
    "crop": CROP,
    "stride": STRIDE,
    "learning_rate": 0.3,
}


class PatchColours(nn.Module):
    """Patch tokens: mean and spread of each colour in the patch."""

    patch_size = PATCH

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6, bias=False).to(dtype)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linalg.qr(torch.arange(36.0).view(6, 6).sin()).Q)

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        patches = F.unfold(images, PATCH, stride=PATCH).unflatten(1, (3, -1))
        tokens = torch.cat([patches.mean(2), patches.std(2)], 1).transpose(1, 2)
        return {"x_norm_patchtokens": self.mix(tokens)}


def write_masks(folder: Path, seed: int, *, noise: int = 60, void: bool = True) -> Path:
    """Images of blocks of four colours with masks; a frame of each mask has no class."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.txt").write_text("\n".join(NAMES))
    for i, (width, height) in enumerate(SIZES):
        blocks = generator.integers(0, 4, (4, 4)).astype(np.uint8)
        mask = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
        levels = COLOURS[mask] + generator.integers(-noise, noise + 1, (height, width, 3))
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        mask = mask.copy()
        if void:
            mask[:2] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("masks")
    return {name: write_masks(root / name, seed) for seed, name in enumerate(("train", "test"))}


def run(sets: dict[str, Path], changed: dict[str, Any] | None = None, **more: Any) -> Result:
    settings = LinearSegmentationSettings(**{**SMALL, **(changed or {})})
    encoder = more.pop("encoder", None) or PatchColours()
    return linear_segmentation(encoder, sets["train"], sets["test"], settings, **more)


class Plain(nn.Module):
    """The head of torch's modules."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(m).double(), nn.Conv2d(m, 5, 1).double()
        with torch.no_grad():
            first = SegmentationHeads(6, (m,), 5, 0).weights[0]
            self.conv.weight.copy_(first[..., None, None])
            self.conv.bias.zero_()

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return self.conv(x if kept is None else x * kept[..., None, None])


def tokens_of(encoder: PatchColours, images: Tensor, m: int) -> Tensor:
    tokens = encoder.forward_features(images.double())["x_norm_patchtokens"]
    side = CROP // PATCH
    return tokens.transpose(1, 2).unflatten(2, (side, side))[:, :m].detach()


def trained(sets: dict[str, Path], m: int, kind: str, encoder: PatchColours) -> Plain:
    """A head of width m, trained by the loop that any tutorial has."""
    data, head = open_segmentation(sets["train"]), Plain(m)
    if kind == "sgd":
        optimizer: Any = torch.optim.SGD(head.parameters(), 0.3, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(head.parameters(), 0.3, weight_decay=1e-3)
    numbers = enumerate(shuffled_without_end(len(data), 0))
    for step in range(6):
        pairs = []
        for place, i in islice(numbers, 3):
            image, mask = data.load(i)
            targets = np.where(mask == 255, -1, mask).astype(np.int32)
            pairs.append(random_crop(image, targets, CropSize(CROP, 0.5, 2.0), 0, place))
        images, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
        kept = None
        rate = 0.3 * (1 + math.cos(math.pi * step / 6)) / 2
        if kind == "adamw":  # of DINOv3: two steps of warm-up, dropout
            rate = 0.3 * (
                (step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2
            )
            kept = dropout(3, 6, 0.1, 0, step)[:, :m].double()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        logits = head(tokens_of(encoder, images, m), kept)
        pixels = F.interpolate(logits, (CROP, CROP), mode="bilinear", align_corners=False)
        F.cross_entropy(pixels, labels.long(), ignore_index=-1).backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def iou_of(sets: dict[str, Path], m: int, head: Plain, encoder: PatchColours) -> list[float | None]:
    """The IoU of each class, from windows one after the other."""
    data = open_segmentation(sets["test"])
    both, either = np.zeros(5), np.zeros(5)
    for i in range(len(data)):
        image, mask = data.load(i)
        size = scaled_size(image.size, CROP)
        pixels = normalised(image.resize(size, Image.Resampling.BICUBIC)).double()
        height, width = pixels.shape[1:]
        total = torch.zeros(5, max(height, CROP), max(width, CROP), dtype=torch.float64)
        count, filled = torch.zeros_like(total[0]), torch.zeros_like(total[:3])
        filled[:, :height, :width] = pixels
        for row in {*range(0, max(height - CROP, 0), STRIDE), max(height - CROP, 0)}:
            for column in {*range(0, max(width - CROP, 0), STRIDE), max(width - CROP, 0)}:
                place = (..., slice(row, row + CROP), slice(column, column + CROP))
                logits = head(tokens_of(encoder, filled[place][None], m))
                total[place] += F.interpolate(logits, (CROP, CROP), mode="bilinear")[0]
                count[place] += 1
        logits = (total / count)[:, :height, :width]
        predicted = F.interpolate(logits[None], mask.shape, mode="bilinear")[0].argmax(0).numpy()
        for c in range(5):
            label, guess = mask == c, (predicted == c) & (mask != 255)
            both[c] += (label & guess).sum()
            either[c] += (label | guess).sum()
    return [b / e if e else None for b, e in zip(both, either, strict=True)]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_equals_torchs_modules_in_a_plain_loop(sets: dict[str, Path], kind: str) -> None:
    changed = {} if kind == "sgd" else {"recipe": "dinov3", "warm_up": 2}
    result = run(sets, changed, dims=(3, 6))
    encoder = PatchColours(torch.float64)
    for m in (3, 6):
        expected = iou_of(sets, m, trained(sets, m, kind, encoder), encoder)
        found = result.details[str(m)]["IoU"]
        assert [one is None for one in found] == [one is None for one in expected]
        pairs = [pair for pair in zip(found, expected, strict=True) if pair[0] is not None]
        # One pixel of 2,000 may lie within rounding of a boundary.
        assert np.abs(np.diff(pairs, axis=1)).max() < 5e-3
        assert result.figures[m]["mIoU"] == pytest.approx(100 * np.mean(expected[:4]), abs=0.3)
    assert result.figures[3] != result.figures[6]


def test_classes_are_found_where_colours_tell_them(tmp_path: Path) -> None:
    sets = {
        name: write_masks(tmp_path / name, i, noise=5) for i, name in enumerate(("train", "test"))
    }
    result = run(sets, {"iterations": 40, "batch_size": 4, "learning_rate": 0.1})
    assert result.figures[6]["mIoU"] > 60  # borders of blocks of five pixels, patches of four
    assert result.details["6"]["IoU"][4] in (None, 0.0)  # of a class that does not occur


@pytest.mark.parametrize("reading", [Reading(num_workers=0), Reading(1, 1), Reading(5, 3)])
@pytest.mark.parametrize("recipe", ["franca", "dinov3"])
def test_threads_and_batches_of_the_network_change_nothing(
    sets: dict[str, Path], reading: Reading, recipe: str
) -> None:
    expected = run(sets, {"recipe": recipe}, dims=(2, 6))
    found = run(sets, {"recipe": recipe}, dims=(2, 6), reading=reading)
    for m in (2, 6):
        assert found.details[str(m)]["loss"] == pytest.approx(
            expected.details[str(m)]["loss"], rel=1e-5
        )
        assert found.figures[m]["mIoU"] == pytest.approx(expected.figures[m]["mIoU"], abs=0.2)


def test_a_width_does_not_depend_on_the_others(sets: dict[str, Path]) -> None:
    changed = {"recipe": "dinov3"}
    alone, beside = run(sets, changed, dims=(2,)), run(sets, changed, dims=(6, 2))
    assert alone.details["2"]["loss"] == pytest.approx(beside.details["2"]["loss"])
    assert alone.details["2"]["IoU"] == pytest.approx(beside.details["2"]["IoU"], abs=2e-3)
    assert run(sets, changed).figures == {6: pytest.approx(beside.figures[6], abs=0.2)}


def test_the_seed_matters(sets: dict[str, Path]) -> None:
    first, second, other = (run(sets, {"seed": seed}).details["6"]["loss"] for seed in (0, 0, 1))
    assert first == second and first != other


def test_the_order_of_classes_does_not_matter(sets: dict[str, Path], tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]  # the number that each class has there
    for name in ("train", "test"):
        folder = tmp_path / name
        (folder / "masks").mkdir(parents=True)
        (folder / "images").symlink_to(sets[name] / "images")
        names = [NAMES[order.index(i)] for i in range(5)]
        (folder / "classes.txt").write_text("\n".join(names))
        table = np.arange(256, dtype=np.uint8)
        table[:5] = order
        for file in (sets[name] / "masks").iterdir():
            Image.fromarray(table[np.asarray(Image.open(file))]).save(folder / "masks" / file.name)
    there = {name: tmp_path / name for name in ("train", "test")}
    # The test set is renumbered as training is, whichever its own numbers are.
    assert run({"train": sets["train"], "test": there["test"]}).figures == run(sets).figures
    assert run(there).details["6"]["IoU"] != run(sets).details["6"]["IoU"]  # other weights begin


def test_a_class_that_is_ignored_is_never_predicted(tmp_path: Path) -> None:
    sets = {
        name: write_masks(tmp_path / name, i, void=False)
        for i, name in enumerate(("train", "test"))
    }
    named = {name: f"ImageMasks:root={path}:ignore=0" for name, path in sets.items()}
    result = run(named)
    assert result.details["6"]["IoU"][0] is None
    assert all(one is not None for one in result.details["6"]["IoU"][1:4])


def test_a_result_says_how_it_was_made(sets: dict[str, Path]) -> None:
    result = run(sets)
    assert result.details["recipe"]["stride"] == STRIDE and result.details["recipe"]["warm_up"] == 0
    assert result.details["class_names"] == list(NAMES)
    assert result.data["test"] == {"images": 5, "classes": 5, "ignore": 255}
    assert result.changed == SMALL


def test_by_its_name(sets: dict[str, Path]) -> None:
    sources = {name: str(path) for name, path in sets.items()}
    text = {name: str(value) for name, value in SMALL.items()}
    found = evaluate("linear-segmentation", PatchColours(), sources, text)
    assert found.figures == run(sets).figures


def test_what_cannot_be_evaluated_is_refused(sets: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="encoder: no patch tokens"):
        linear_segmentation(lambda images: images, sets["train"], sets["test"])
    with pytest.raises(InputError, match="patch size 4"):
        run(sets, {"crop": 18})
    with pytest.raises(InputError, match="dims: "):
        run(sets, dims=(7,))
    with pytest.raises(InputError, match="learning_rate: the loss is not finite"):
        run(sets, {"learning_rate": 1e38})
    with pytest.raises(InputError, match="2 sources of train; accepted: one"):
        evaluate(
            "linear-segmentation",
            PatchColours(),
            {"train": [str(sets["train"])] * 2, "test": str(sets["test"])},
        )


def test_features_that_are_not_finite_are_refused(sets: dict[str, Path]) -> None:
    encoder = PatchColours()
    with torch.no_grad():
        encoder.mix.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="features: not all finite"):
        run(sets, encoder=encoder)


def test_an_interruption_ends_the_threads(sets: dict[str, Path]) -> None:
    class Interrupted(PatchColours):
        def forward_features(self, images: Tensor) -> dict[str, Tensor]:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(sets, encoder=Interrupted())
    assert threading.active_count() == before
