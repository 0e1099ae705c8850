from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.segmented_images import Mask, SegmentedImages
from franca_fast.data.voc_boxes import VocBoxes
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.boxed_images import MaskBoxes, mask_boxes, open_boxed_images
from python_tests.data.benchmark_trees import picture, save_palette, write_voc


class Given(SegmentedImages):
    def __init__(self, mask: Mask, class_names: list[str], ignore: int | None) -> None:
        self.mask, self.class_names, self.ignore, self.names = mask, class_names, ignore, ["a"]

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        return Image.new("RGB", self.mask.shape[::-1]), self.mask

    def fingerprint(self) -> str:
        return "\n".join([repr(self), *self.names])


MASK = np.array([[0, 1, 1, 2], [0, 0, 2, 2], [1, 0, 0, 255]])


@pytest.mark.parametrize(
    ("names", "ignore", "expected"),
    [
        # 0 where nothing tells; both parts of 1; the diagonal joins nothing, the edge does.
        (["a", "b", "c"], 255, [(1, 0, 3, 1), (0, 2, 1, 3), (2, 0, 4, 2)]),
        (["a", "b", "Background"], 255, [(0, 0, 3, 3), (1, 0, 3, 1), (0, 2, 1, 3)]),
        ([str(i) for i in range(256)], 0, [(1, 0, 3, 1), (0, 2, 1, 3), (2, 0, 4, 2), (3, 2, 4, 3)]),
    ],
)
def test_boxes_of_the_parts_of_each_class_but_the_background(
    names: list[str], ignore: int, expected: list[tuple[int, ...]]
) -> None:
    image, boxes = MaskBoxes(Given(MASK, names, ignore)).load(0)
    assert image.size == (4, 3)
    assert sorted(map(tuple, boxes)) == sorted(expected)


def test_boxes_equal_those_found_by_filling() -> None:
    mask = np.random.default_rng(0).integers(0, 3, size=(12, 15))
    expected = []
    left = {(y, x) for y, x in np.argwhere(mask > 0)}
    while left:
        waiting, part = [next(iter(left))], []
        while waiting:
            y, x = waiting.pop()
            if (y, x) in left and mask[y, x] == mask[(part or [(y, x)])[0]]:
                left.remove((y, x))
                part.append((y, x))
                waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        rows, columns = zip(*part, strict=True)
        expected.append((min(columns), min(rows), max(columns) + 1, max(rows) + 1))
    assert sorted(map(tuple, mask_boxes(mask, {0, None}))) == sorted(expected)


def test_no_object_has_no_box() -> None:
    assert mask_boxes(np.zeros((4, 5), np.int64), {0}).shape == (0, 4)


def test_each_kind_of_source_is_told(tmp_path: Path) -> None:
    voc = write_voc(tmp_path / "VOC2007", {"a": (picture((9, 8), 0), [(1, 1, 9, 8)])})
    for source in (voc, str(voc), f"VOCDetection:root={voc}", tmp_path):
        assert isinstance(open_boxed_images(source), VocBoxes)
    plain = tmp_path / "plain"
    (plain / "images").mkdir(parents=True)
    picture((9, 8), 0).save(plain / "images/a.png")
    save_palette(np.pad(np.ones((3, 4)), ((2, 3), (1, 4))), plain / "masks/a.png")
    images = open_boxed_images(plain)
    assert images.load(0)[1].tolist() == [[1, 2, 5, 5]]
    assert len(open_boxed_images("FashionScenes:split=TEST")) == 100
    with pytest.raises(InputError, match="dataset: VOCDetektion"):
        open_boxed_images("VOCDetektion:root=/")


def test_stamps_tell_images_apart(tmp_path: Path) -> None:
    images = {name: (picture((9, 8), 0), [(1, 1, 9, 8)]) for name in "ab"}
    for opened in (VocBoxes(write_voc(tmp_path, images)), open_boxed_images("FashionScenes")):
        assert opened.stamp(0) == opened.stamp(0) != opened.stamp(1)
