from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.boxed_images import open_boxed_images
from franca_fast.evaluation.dense.object_discovery import (
    ObjectDiscoverySettings,
    object_discovery,
)
from franca_fast.evaluation.dense.token_cut import token_cut
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.protocol import Reading
from franca_fast.models import VisionTransformer
from python_tests.data.benchmark_trees import write_voc
from python_tests.evaluation.dense.patch_colours import PatchColours
from python_tests.evaluation.golden import arrays, values

PATCH = 7
TOKENS = ObjectDiscoverySettings(feature="tokens")


def scene(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A red box on a blue ground; the box is given as VOC has it, from 1."""
    image = Image.new("RGB", size, (30, 60, 200))
    left, top, right, bottom = box
    image.paste((220, 50, 30), (left - 1, top - 1, right, bottom))
    return image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four images: right, right at the cut border, wrong, and one without an object."""
    inside = (15, 8, 35, 28)
    border = (43, 15, 60, 40)  # the last column and row of patches stick out
    images = {
        "a": (scene((60, 40), inside), [inside]),
        "b": (scene((60, 40), border), [(1, 1, 9, 9), border]),
        "c": (scene((49, 42), inside), [(36, 29, 49, 42)]),
        "d": (scene((49, 42), inside), []),
    }
    return write_voc(tmp_path / "VOC2007", images)


def test_corloc_of_images_whose_object_is_known(tree: Path) -> None:
    encoder = PatchColours(PATCH)
    result = object_discovery(encoder, tree, TOKENS, dims=[2, 6])
    assert result.figures[6] == {"CorLoc": pytest.approx(100 * 2 / 3)}
    assert result.data["data"] == {"images": 3, "images_without_objects": 1}
    assert result.details["6"] == {"right": 2} and encoder.seen == 4


class Few:
    """Some scenes of garments, cut so that patches stick out, with their first two boxes."""

    def __init__(self, n: int) -> None:
        images = open_boxed_images("FashionScenes:split=TEST")
        loaded = [images.load(i) for i in range(n)]
        self.images = [(image.crop((0, 0, 109, 105)), boxes[:2]) for image, boxes in loaded]
        self.names = images.names[:n]

    def __len__(self) -> int:
        return len(self.images)

    def load(self, i: int) -> tuple[Image.Image, np.ndarray]:
        return self.images[i]

    def stamp(self, i: int) -> list[int]:
        return [i]


def plain_iou(image: Image.Image, boxes: np.ndarray, size: tuple[int, int], width: int) -> float:
    """The best overlap of the object's box, drawn pixel by pixel; for images scaled to `size`."""
    w, h = size
    levels = np.array(image.resize(size, Image.Resampling.BICUBIC)) / 255
    padded = np.zeros((-(-h // PATCH) * PATCH, -(-w // PATCH) * PATCH, 3))
    padded[:h, :w] = (levels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    colours = padded.reshape(len(padded) // PATCH, PATCH, -1, PATCH, 3).mean((1, 3))
    tokens = colours @ PatchColours(PATCH).matrix.double().numpy()
    mask = token_cut(tokens[..., :width].astype(np.float32)).mask
    ys, xs = np.nonzero(np.kron(mask, np.ones((PATCH, PATCH), bool))[:h, :w])
    # In pixels of the image that the true boxes are of.
    x, y = image.width / w, image.height / h
    found = (xs.min() * x, ys.min() * y, (xs.max() + 1) * x, (ys.max() + 1) * y)
    best = 0.0
    for left, top, right, bottom in boxes:
        across = max(0, min(right, found[2]) - max(left, found[0]))
        down = max(0, min(bottom, found[3]) - max(top, found[1]))
        areas = (right - left) * (bottom - top) + (found[2] - found[0]) * (found[3] - found[1])
        best = max(best, across * down / (areas - across * down))
    return best


@pytest.mark.parametrize(("img_size", "size"), [(None, (109, 105)), (84, (84, 81))])
def test_figures_equal_a_plain_computation(img_size: int | None, size: tuple[int, int]) -> None:
    few = Few(8)
    ious = {
        width: [plain_iou(*few.load(i), size, width) for i in range(len(few))] for width in (2, 6)
    }
    shares = set()
    for iou in (0.2, 0.4):
        settings = ObjectDiscoverySettings(feature="tokens", img_size=img_size, iou=iou)
        result = object_discovery(PatchColours(PATCH), few, settings, dims=[2, 6])  # type: ignore[arg-type]
        for width in (2, 6):
            right = sum(one >= iou for one in ious[width])
            assert result.details[str(width)]["right"] == right
            assert result.figures[width]["CorLoc"] == pytest.approx(100 * right / len(few))
            shares.add(right)
    assert len(shares) > 1 and max(shares) > 0


def test_golden_keys_give_the_golden_box(tmp_path: Path) -> None:
    """Through the protocol: an encoder's own keys, padding, the box and its overlap."""
    golden = values()["tokencut"]
    height, width = golden["settings"]["image_size"]
    h, w = golden["settings"]["grid"]
    left, top, right, bottom = map(int, golden["box"])
    tree = write_voc(
        tmp_path,
        {"a": (Image.new("RGB", (width, height)), [(left + 1, top + 1, right, bottom)])},
    )

    class Golden:
        patch_size = golden["settings"]["patch"]

        def last_keys(self, images: Tensor) -> Tensor:
            assert images.shape == (1, 3, h * self.patch_size, w * self.patch_size)
            return arrays()["tokencut.keys"].reshape(1, h, w, -1)

    exact = ObjectDiscoverySettings(iou=1.0)
    result = object_discovery(Golden(), tree, exact)  # type: ignore[arg-type]
    assert result.figures == {24: {"CorLoc": 100.0}}


@pytest.mark.parametrize(
    "reading", [Reading(batch_size=1, num_workers=0), Reading(batch_size=8, num_workers=3)]
)
@pytest.mark.parametrize("feature", ["keys", "tokens"])
def test_batches_and_workers_change_nothing(tree: Path, reading: Reading, feature: str) -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=2, num_heads=2)
    settings = ObjectDiscoverySettings(feature=feature, tau=0.9, iou=0.3)
    expected = object_discovery(vit, tree, settings)
    assert object_discovery(vit, tree, settings, reading=reading).figures == expected.figures
    assert list(expected.figures) == [32]


def test_the_order_of_images_changes_nothing(tree: Path) -> None:
    expected = object_discovery(PatchColours(PATCH), tree, TOKENS)
    (tree / "ImageSets/Main/trainval.txt").write_text("d 1\nb -1\na  1\nc 1\n")
    found = object_discovery(PatchColours(PATCH), tree, TOKENS)
    assert found.figures == expected.figures and found.data == expected.data


def test_keys_have_no_nested_widths(tree: Path) -> None:
    with pytest.raises(InputError, match=r"dims: \(8,\) with feature keys; accepted: feature tok"):
        object_discovery(PatchColours(PATCH), tree, dims=[8])


def test_is_run_by_its_name_and_kept_features_are_used(tree: Path, tmp_path: Path) -> None:
    encoder = PatchColours(PATCH)
    reading = Reading(features_cache=tmp_path / "cache")
    given = {"feature": "tokens", "img_size": "none"}
    first = evaluate("object-discovery", encoder, {"data": tree}, given, reading=reading)
    seen = encoder.seen
    again = evaluate("object-discovery", encoder, {"data": tree}, given, reading=reading)
    assert first.data["data"]["source"] == [str(tree)]
    assert seen == encoder.seen == 4 and first.figures == again.figures


def test_images_of_too_many_patches_are_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("franca_fast.evaluation.dense.object_discovery")
    monkeypatch.setattr(module, "_MOST_PATCHES", 20)
    with pytest.raises(
        InputError, match=r"'a': 54 patches; accepted: 20 or fewer; the setting img"
    ):
        object_discovery(PatchColours(PATCH), tree, TOKENS)
    scaled = ObjectDiscoverySettings(feature="tokens", img_size=28)
    assert object_discovery(PatchColours(PATCH), tree, scaled).data["data"]["images"] == 3


def test_no_image_with_an_object_is_refused(tmp_path: Path) -> None:
    tree = write_voc(tmp_path, {"a": (Image.new("RGB", (20, 20)), [])})
    with pytest.raises(InputError, match="no image with an object"):
        object_discovery(PatchColours(PATCH), tree, TOKENS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"feature": "key"}, r"feature: 'key' \(did you mean 'keys'\?\); accepted: keys, tokens"),
        ({"tau": 1.0}, "tau: 1.0"),
        ({"eps": 0.0}, "eps: 0.0"),
        ({"img_size": 0}, "img_size: 0"),
        ({"iou": 0.0}, "iou: 0.0"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ObjectDiscoverySettings(**given)  # type: ignore[arg-type]


def test_too_many_patches_are_refused_before_they_are_made(tree: Path) -> None:
    large = ObjectDiscoverySettings(img_size=10**7)  # of which no machine holds the pixels
    with pytest.raises(InputError, match="patches; accepted: 10000 or fewer"):
        object_discovery(PatchColours(PATCH), tree, large)
