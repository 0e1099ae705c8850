"""The whole protocol against heads trained one by one in a plain loop, and what must not matter."""

from __future__ import annotations

import shutil
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

from franca_fast.data.decoding import LazyImage
from franca_fast.data.images import open_images
from franca_fast.data.numbered_images import random_resized_crop, shuffled_without_end
from franca_fast.data.transform import eval_transform
from franca_fast.errors import InputError
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.image.linear import LinearSettings, linear
from franca_fast.evaluation.image.linear_heads import LinearHeads
from franca_fast.evaluation.protocol import Reading
from franca_fast.evaluation.result import Result
from franca_fast.models import VisionTransformer

COLOURS = {"blue": (40, 60, 200), "green": (30, 190, 60), "red": (210, 40, 50)}
RATES = (1e-2, 0.5, 5.0)
SMALL: dict[str, Any] = {
    "epochs": 2,
    "epoch_length": 4,
    "batch_size": 8,
    "learning_rates": RATES,
    "img_size": 14,
    "resize": 16,
}


def write_colours(folder: Path, per_class: int, noise: int, seed: int = 0) -> Path:
    """Noisy pictures of one colour each, in a folder for each colour."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            size = generator.integers(15, 40, 2)
            levels = np.array(colour) + generator.integers(-noise, noise + 1, (*size, 3))
            levels += generator.integers(-noise, noise + 1, 3)
            Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("colours")
    names = {"train": 6, "val": 5, "test": 7}
    return {
        name: write_colours(root / name, n, 120, seed)
        for seed, (name, n) in enumerate(names.items())
    }


@pytest.fixture
def deep() -> VisionTransformer:
    return VisionTransformer(
        img_size=14, patch_size=7, embed_dim=16, depth=5, num_heads=2, layerscale=0.5
    ).eval()


def mean_colour(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def run(encoder: Any, sets: dict[str, Path], changed: dict[str, Any] | None = None, **more: Any):
    settings = LinearSettings(**{**SMALL, **(changed or {})})
    return linear(encoder, sets["train"], sets["test"], settings, **more)


def accuracies(result: Result, width: int) -> list[float]:
    return [head["top-1"] for head in result.details[str(width)]["accuracies"]]


@torch.no_grad()
def inputs(model: VisionTransformer, images: list[Tensor], m: int) -> list[Tensor]:
    """The four inputs of DINOv2 in float64: 1 and 4 blocks, each without and with the mean."""
    layers = model.get_intermediate_layers(torch.stack(images), 4, return_class_token=True)
    cls_tokens = [cls_token[:, :m].double() for _, cls_token in layers]
    mean = layers[-1][0][..., :m].double().mean(1)
    found = []
    for blocks in (1, 4):
        parts = cls_tokens[4 - blocks :]
        found += [torch.cat(parts, 1), torch.cat([*parts, mean], 1)]
    return found


def plain(model: VisionTransformer, sets: dict[str, Path], m: int, classes: int) -> list[float]:
    """Accuracy of every head: one nn.Linear and one optimizer each, one after the other."""
    crop, transform = random_resized_crop(14, (0.08, 1.0), 0), eval_transform(14, 16)
    images, test = (list(open_images(sets[name])) for name in ("train", "test"))
    numbers = enumerate(shuffled_without_end(len(images), 0))
    batches = []
    for _ in range(8):
        batch = list(islice(numbers, 8))
        crops = [crop(place, LazyImage(images[i][1])) for place, i in batch]
        batches.append((inputs(model, crops, m), torch.tensor([images[i][2] for _, i in batch])))
    test_inputs = inputs(model, [transform(image) for _, image, _ in test], m)
    test_labels = torch.tensor([label for _, _, label in test])
    right = []
    for kind in range(4):
        width = test_inputs[kind].shape[1]
        first = LinearHeads(width, classes, RATES, 0).weight.unflatten(0, (len(RATES), -1))
        for number, rate in enumerate(RATES):
            layer = nn.Linear(width, classes).double()
            with torch.no_grad():
                layer.weight.copy_(first[number])
                layer.bias.zero_()
            optimizer = torch.optim.SGD(layer.parameters(), rate * 8 / 256, momentum=0.9)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
            for x, labels in batches:
                optimizer.zero_grad()
                F.cross_entropy(layer(x[kind]), labels).backward()
                optimizer.step()
                schedule.step()
            predicted = layer(test_inputs[kind]).argmax(1)
            right.append(100 * (predicted == test_labels).double().mean().item())
    return right


@pytest.mark.parametrize("m", [16, 6])
def test_equals_heads_trained_one_by_one(
    deep: VisionTransformer, sets: dict[str, Path], m: int
) -> None:
    result = run(deep, sets, dims=(m,))
    expected = plain(deep, sets, m, 3)
    assert accuracies(result, m) == pytest.approx(expected)
    assert result.figures[m]["top-1"] == pytest.approx(max(expected))
    assert len(set(expected)) > 2  # heads that are all alike would prove nothing
    best = result.details[str(m)]["accuracies"][int(np.argmax(expected))]
    assert result.details[str(m)]["head"]["learning rate"] == best["learning rate"]


def test_there_are_52_heads_by_default(deep: VisionTransformer, sets: dict[str, Path]) -> None:
    changed = {"learning_rates": LinearSettings().learning_rates, "epochs": 1, "epoch_length": 1}
    result = run(deep, sets, changed)
    assert result.details["16"]["heads"] == 52
    rates = [head["learning rate"] for head in result.details["16"]["accuracies"][:13]]
    assert rates == [digit * 10**-power for power in (5, 4, 3, 2) for digit in (1, 2, 5)] + [0.1]


@pytest.mark.parametrize("reading", [Reading(num_workers=0), Reading(5, 1), Reading(2, 3)])
def test_threads_and_batches_of_the_network_change_nothing(
    deep: VisionTransformer, sets: dict[str, Path], reading: Reading
) -> None:
    expected = run(deep, sets, dims=(4, 16), validation=sets["val"])
    found = run(deep, sets, dims=(4, 16), validation=sets["val"], reading=reading)
    assert found.figures == expected.figures and found.details == expected.details


def test_a_width_does_not_depend_on_the_others(
    deep: VisionTransformer, sets: dict[str, Path]
) -> None:
    alone, beside = run(deep, sets, dims=(4,)), run(deep, sets, dims=(16, 4))
    assert alone.figures[4] == beside.figures[4] and alone.details["4"] == beside.details["4"]
    assert run(deep, sets).figures == {16: beside.figures[16]}


def test_the_seed_matters(deep: VisionTransformer, sets: dict[str, Path]) -> None:
    first, second, other = (accuracies(run(deep, sets, {"seed": s}), 16) for s in (0, 0, 1))
    assert first == second and first != other


def test_a_separable_problem_is_solved(tmp_path: Path) -> None:
    sets = {
        name: write_colours(tmp_path / name, 8, 20, i) for i, name in enumerate(("train", "test"))
    }
    result = run(mean_colour, sets, {"epoch_length": 20, "learning_rates": (1.0,)})
    assert result.figures == {3: {"top-1": 100.0, "top-5": 100.0}}


def test_the_head_that_is_best_on_val_counts(
    deep: VisionTransformer, sets: dict[str, Path]
) -> None:
    on_test = run(deep, sets)
    on_val = run(deep, {**sets, "test": sets["val"]})
    both = run(deep, sets, validation=sets["val"])
    assert on_test.details["chosen on"] == "test, as no validation was given"
    assert both.details["chosen on"] == "validation"
    assert accuracies(both, 16) == accuracies(on_val, 16)
    chosen = int(np.argmax(accuracies(on_val, 16)))
    assert both.figures[16]["top-1"] == accuracies(on_test, 16)[chosen]
    assert set(both.figures[16]) == {"top-1", "top-5"}
    assert set(both.data) == {"train", "validation", "test"}


def test_further_sets_and_those_that_lack_classes(
    deep: VisionTransformer, sets: dict[str, Path], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    for name in ("blue", "red"):
        (few / name).mkdir(parents=True)
        for file in (sets["test"] / name).iterdir():
            (few / name / file.name).write_bytes(file.read_bytes())
    more = shutil.copytree(sets["val"], tmp_path / "more")
    result = run(deep, sets, further=[more, few])
    names = [f"{kind}top-{k}" for kind in ("", "more ", "few ") for k in (1, 5)]
    assert list(result.figures[16]) == [*names, "few top-1 of its classes"]
    figures = result.figures[16]
    assert figures["few top-1 of its classes"] >= figures["few top-1"]
    assert result.data["few"]["classes"] == 2
    same = run(deep, sets, further=[few])
    assert same.figures[16]["few top-1"] == figures["few top-1"]


def test_among_its_own_classes_a_set_of_one_class_is_always_right(
    deep: VisionTransformer, sets: dict[str, Path], tmp_path: Path
) -> None:
    for name in COLOURS:
        shutil.copytree(sets["test"] / name, tmp_path / f"only {name}" / name)
    further = [tmp_path / f"only {name}" for name in COLOURS]
    figures = run(deep, sets, {"learning_rates": (1e-9,)}, further=further).figures[16]
    plain, among = (
        [figures[f"only {name} top-1{kind}"] for name in COLOURS]
        for kind in ("", " of its classes")
    )
    assert among == [100.0] * 3 and min(plain) < 100


def test_heads_that_cannot_be_had_are_named(sets: dict[str, Path]) -> None:
    result = run(mean_colour, sets)
    assert result.details["3"]["heads"] == len(RATES)
    assert len(result.details["remarks"]) == 2
    with pytest.raises(InputError, match="no heads on the mean of the patches"):
        run(mean_colour, sets, {"patch_mean": "yes"})


def test_a_head_that_overflows_is_counted_and_does_not_count(
    deep: VisionTransformer, sets: dict[str, Path]
) -> None:
    result = run(deep, sets, {"learning_rates": (RATES[0], 1e300, *RATES[1:])})
    assert result.details["16"]["heads that did not stay finite"] == 4
    found = accuracies(result, 16)
    assert [value is None for value in found] == [False, True, False, False] * 4
    with pytest.raises(InputError, match="no head stayed finite"):
        run(deep, sets, {"learning_rates": (1e300,)})


def test_the_best_of_the_heads_that_stayed_finite_counts(
    deep: VisionTransformer, sets: dict[str, Path]
) -> None:
    rates = (1e300, RATES[2], RATES[0])  # the first is not finite, and is not the best for it
    result = run(deep, sets, {"learning_rates": rates})
    found = [-1 if value is None else value for value in accuracies(result, 16)]
    assert result.figures[16]["top-1"] == max(found) > 0
    assert result.details["16"]["head"]["learning rate"] == rates[int(np.argmax(found)) % 3]


def test_top_5_is_of_five_classes_and_of_all_where_there_are_fewer(tmp_path: Path) -> None:
    for name in "abcdefgh":  # that nothing tells apart
        (tmp_path / name).mkdir()
        Image.new("RGB", (14, 14), (90, 90, 90)).save(tmp_path / name / "0.png")
    result = run(mean_colour, {"train": tmp_path, "test": tmp_path})
    assert result.figures[3] == {"top-1": 12.5, "top-5": 62.5}


def test_features_that_are_not_finite_are_refused(sets: dict[str, Path]) -> None:
    def broken(images: Tensor) -> Tensor:
        return images.mean((2, 3)) / 0

    with pytest.raises(InputError, match="features: not all finite"):
        run(broken, sets)


def test_bfloat16_is_of_the_network_alone(deep: VisionTransformer, sets: dict[str, Path]) -> None:
    seen = []
    step = LinearHeads.step

    def watched(heads: LinearHeads, x: Tensor, labels: Tensor, factor: float) -> Tensor:
        logits = heads.logits(x)
        seen.append((x.dtype, logits.dtype, step(heads, x, labels, factor).dtype))
        return torch.zeros(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearHeads, "step", watched)
        run(deep, sets, reading=Reading(precision="bf16"))
    assert set(seen) == {(torch.float32,) * 3}


def test_an_interruption_ends_the_threads_and_restores_the_model(
    deep: VisionTransformer, sets: dict[str, Path]
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    deep.train()
    deep.blocks[0].register_forward_hook(interrupt)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(deep, sets)
    assert deep.training and threading.active_count() == before


def test_bad_images_are_counted(sets: dict[str, Path], tmp_path: Path) -> None:
    train = write_colours(tmp_path / "train", 3, 50)
    (train / "red" / "0.png").write_text("no image")
    result = run(mean_colour, {**sets, "train": train})
    assert result.data["train"]["account"]["skipped"] == {"not an image": 1}


def test_by_its_name(deep: VisionTransformer, sets: dict[str, Path]) -> None:
    sources = {"train": str(sets["train"]), "test": str(sets["test"])}
    text = {name: str(value).strip("()") for name, value in SMALL.items()}
    assert evaluate("linear", deep, sources, text).figures == run(deep, sets).figures


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rates": ()},
        {"learning_rates": (0.1, -1.0)},
        {"blocks": (0,)},
        {"patch_mean": "maybe"},
        {"momentum": 1.0},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.5,)},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}: .*; accepted: "):
        LinearSettings(**wrong)


def test_sizes_that_do_not_fit_are_refused(deep: VisionTransformer, sets: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="patch size 7"):
        run(deep, sets, {"img_size": 15})
    with pytest.raises(InputError, match="img_size: 14 with resize 10"):
        run(deep, sets, {"resize": 10})
    with pytest.raises(InputError, match="dims: "):
        run(deep, sets, dims=(17,))
