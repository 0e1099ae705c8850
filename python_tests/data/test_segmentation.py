from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.segmentation import open_segmentation, read_mask
from franca_fast.errors import InputError
from python_tests.data.segmentation_files import write_folder, write_pair

MASK = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


def test_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    data = open_segmentation(write_folder(tmp_path, {"b": MASK, "a/c": MASK.T}))
    assert data.names == ["a/c", "b"] and data.class_names == ["0", "1", "2"]
    image, mask = data.load(0)
    assert (image.mode, image.size) == ("RGB", (2, 3))
    assert mask.dtype == np.int64 and mask.tolist() == MASK.T.tolist()
    assert data.ignore == 255


def test_names_of_classes(tmp_path: Path) -> None:
    data = open_segmentation(write_folder(tmp_path, {"a": MASK}, "sky\nsea\nland\nhouse\n"))
    assert data.class_names == ["sky", "sea", "land", "house"] and data.n_classes == 4


@pytest.mark.parametrize("text", ["none", "0"])
def test_another_value_is_ignored(tmp_path: Path, text: str) -> None:
    write_folder(tmp_path, {"a": MASK})
    data = open_segmentation(f"ImageMasks:root={tmp_path}:ignore={text}")
    assert data.ignore == (None if text == "none" else 0) and data.n_classes == 256


@pytest.mark.parametrize("own", [True, False])
def test_voc_in_both_layouts(tmp_path: Path, own: bool) -> None:
    images, lists = ("JPEGImages", "ImageSets/Segmentation") if own else ("images", "sets")
    for name, folder in (("a", "SegmentationClass"), ("b", "SegmentationClassAug")):
        mask = tmp_path / folder / f"{name}.png"
        write_pair(tmp_path / images / f"{name}.jpg", mask, MASK, palette=True)
    (tmp_path / lists).mkdir(parents=True)
    (tmp_path / lists / "trainaug.txt").write_text("b\na\n")
    data = open_segmentation(f"VOCSegmentation:root={tmp_path}")
    assert data.names == ["b", "a"] and data.n_classes == 21 and data.ignore == 255
    assert data.load(1)[1].tolist() == MASK.tolist()
    with pytest.raises(InputError, match=r"lacks sets/val\.txt or ImageSets"):
        open_segmentation(f"VOCSegmentation:root={tmp_path}:split=val")


def test_ade20k(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        folders = (tmp_path / kind / split for kind in ("images", "annotations"))
        image, mask = (folder / f"{split}.png" for folder in folders)
        write_pair(image, mask, np.minimum(MASK, 150))
    data = open_segmentation(f"ADE20K:root={tmp_path}:split=validation")
    assert (data.names, data.n_classes, data.ignore) == (["validation"], 151, 0)


def test_scenes() -> None:
    assert len(open_segmentation("FashionScenes")) == 200
    assert open_segmentation("FashionScenes:split=TEST:seed=3").class_names[0] == "background"


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    data = open_segmentation(write_folder(tmp_path, {"a": MASK}))
    Image.fromarray(MASK.T.copy()).save(tmp_path / "masks" / "a.png")
    with pytest.raises(InputError, match="2 x 3 pixels; accepted: the size of its image, 3 x 2"):
        data.load(0)


def test_a_value_that_is_no_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": MASK}, "sky\nsea\n")
    with pytest.raises(InputError, match="the value 2; accepted: below 2, the classes, and 255"):
        open_segmentation(tmp_path).load(0)


def test_a_mask_of_colours(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="mode RGB; accepted: class numbers"):
        read_mask(tmp_path / "a.png")


def test_a_list_of_classes_that_is_no_text(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": MASK}, "sky\nsea\n")
    (tmp_path / "classes.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"list '.*classes.txt': .*; accepted: a text of UTF-8"):
        open_segmentation(tmp_path)


def test_a_value_for_none_that_nobody_told(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": MASK})
    wide = MASK.astype(np.uint16)
    wide[MASK == 255] = 65535
    Image.fromarray(wide).save(tmp_path / "masks" / "a.png")
    with pytest.raises(InputError, match=r"65536 classes; accepted: .* by ignore="):
        open_segmentation(tmp_path)
    assert open_segmentation(f"ImageMasks:root={tmp_path}:ignore=65535").n_classes == 3


def test_a_mask_whose_numbers_were_compressed(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"mask '.*a.jpg': a JPEG, .*; accepted: a PNG"):
        read_mask(tmp_path / "a.jpg")


def test_a_damaged_image_and_a_damaged_mask(tmp_path: Path) -> None:
    data = open_segmentation(write_folder(tmp_path, {"a": MASK}))
    file = tmp_path / "images" / "a.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"image '.*a.png': .*accepted"):
        data.load(0)
    file.write_bytes(whole)
    (tmp_path / "masks" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"mask '.*a.png': .*accepted: a PNG"):
        data.load(0)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_without_its_partner(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path, {"a": MASK, "b": MASK})
    (tmp_path / kind / "b.png").unlink()
    other = "mask" if kind == "images" else "image"
    with pytest.raises(InputError, match=f"1 files without a partner, such as the {other} 'b'"):
        open_segmentation(tmp_path)


def test_two_files_of_a_stem(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": MASK})
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(InputError, match="accepted: one file of a stem"):
        open_segmentation(tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{root}/absent", "no such file or folder; accepted: a folder with images/ and masks/"),
        ("{root}", "lacks images/"),
        ("ADE20K:root={root}:split=val", "split: val"),
        ("ADE20k:root={root}", "did you mean 'ADE20K'"),
        ("ADE20K:split=training", "needs root=PATH"),
        ("ImageMasks:root={root}:ignore=x", "lacks images/|ignore: x"),
        ("ImageMasks:root={root}/pairs:ignore=-1", "ignore: -1; accepted: a mask value"),
        ("ImageMasks:root={root}/pairs:ignore=99999999999999999999", "ignore: 9+; accepted"),
        ("FashionScenes:seed=x", "seed: x; accepted: a whole number"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, error: str) -> None:
    write_folder(tmp_path / "pairs", {"a": MASK})
    with pytest.raises(InputError, match=error):
        open_segmentation(text.format(root=tmp_path))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    data = open_segmentation(write_folder(tmp_path, {"a": MASK}))
    before = data.fingerprint()
    assert open_segmentation(tmp_path).fingerprint() == before
    write_folder(tmp_path, {"a": np.minimum(MASK, 1)})
    assert open_segmentation(tmp_path).fingerprint() != before
