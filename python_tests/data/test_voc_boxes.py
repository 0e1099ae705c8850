from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.data.voc_boxes import VocBoxes, read_boxes, voc_root
from franca_fast.errors import InputError
from python_tests.data.benchmark_trees import picture, voc_annotation, write_voc


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    images = {
        "000012": (picture((40, 30), 0), [(1, 1, 40, 30), (3, 4, 10, 12)]),
        "000005": (picture((20, 36), 1), [(2, 2, 2, 2)]),
    }
    return write_voc(tmp_path / "VOCdevkit" / "VOC2007", images)


@pytest.mark.parametrize("above", [0, 1, 2])
def test_images_are_sorted_with_the_boxes_of_all_objects(tree: Path, above: int) -> None:
    root = [tree, tree.parent, tree.parent.parent][above]
    images = VocBoxes(root)
    assert images.names == ["000005", "000012"] and len(images) == 2
    image, boxes = images.load(1)
    assert image.size == (40, 30)
    # Parts have boxes too, which are no objects.
    assert boxes.tolist() == [[0, 0, 40, 30], [2, 3, 10, 12]]
    assert images.load(0)[1].tolist() == [[1, 1, 2, 2]]


def test_a_split_is_an_option(tree: Path) -> None:
    (tree / "ImageSets/Main/cat_val.txt").write_text("000012 -1\n")
    assert VocBoxes(f"VOCDetection:root={tree.parent}:split=cat_val").names == ["000012"]
    with pytest.raises(InputError, match=r"without ImageSets/Main/test\.txt"):
        VocBoxes(f"VOCDetection:root={tree}:split=test")


def test_several_years_are_named(tree: Path) -> None:
    other = write_voc(tree.with_name("VOC2012"), {"2008_000002": (picture((9, 9), 2), [])})
    with pytest.raises(InputError, match="has VOC2007, VOC2012; accepted: the folder of one year"):
        VocBoxes(tree.parent)
    assert VocBoxes(other).load(0)[1].shape == (0, 4)
    assert voc_root(tree / "JPEGImages") is None


def test_missing_files_are_counted(tree: Path) -> None:
    (tree / "Annotations/000005.xml").unlink()
    (tree / "JPEGImages/000012.jpg").unlink()
    with pytest.raises(InputError, match="2 files are missing"):
        VocBoxes(tree)


def test_an_annotation_of_another_size_is_refused(tree: Path) -> None:
    (tree / "Annotations/000005.xml").write_text(voc_annotation((20, 35), [(1, 1, 2, 2)]))
    with pytest.raises(InputError, match=r"of an image of 20 x 35 pixels; accepted: .*20 x 36"):
        VocBoxes(tree).load(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (voc_annotation((4, 4), [(3, 1, 2, 4)]), "an empty box"),
        (voc_annotation((4, 4), [("", 1, 2, 4)]), "could not convert"),
        ("<annotation>", "no element found"),
        ("", "no element found"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + voc_annotation((4, 4), []), "a document type"),
    ],
)
def test_wrong_annotations_are_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "a.xml"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_boxes(file, (4, 4))
    assert "a.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_entities_are_refused_before_they_are_expanded(tmp_path: Path) -> None:
    """Also in UTF-16, where no search for their text would find them."""
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    text = f'<!DOCTYPE a [<!ENTITY e0 "x">{levels}]><annotation>&e11;</annotation>'
    file = tmp_path / "a.xml"
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(InputError, match="a document type"):
        read_boxes(file, (4, 4))
