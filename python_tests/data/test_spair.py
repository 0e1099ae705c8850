from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from franca_fast.data.spair import open_spair
from franca_fast.errors import InputError
from python_tests.data.benchmark_trees import write_spair


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_spair(tmp_path / "SPair-71k", {"cat": 3, "bus": 2})


@pytest.mark.parametrize("above", [False, True])
def test_pairs_have_what_their_annotations_say(tree: Path, above: bool) -> None:
    pairs = open_spair(tree.parent if above else tree)
    assert [pair.class_name for pair in pairs] == ["cat", "cat", "cat", "bus", "bus"]
    file = tree / "PairAnnotation/test" / f"{pairs[1].name}.json"
    facts = json.loads(file.read_text())
    for view, side in ((pairs[1].source, "src"), (pairs[1].target, "trg")):
        assert view.keypoints.tolist() == facts[f"{side}_kps"]
        assert list(view.box) == facts[f"{side}_bndbox"]
        assert list(view.size) == facts[f"{side}_imsize"][:2]
        assert view.file == tree / "JPEGImages/cat" / facts[f"{side}_imname"]


def test_names_of_files_without_a_colon_and_no_layout_are_fine(tree: Path) -> None:
    expected = open_spair(tree)
    for file in (tree / "PairAnnotation/test").iterdir():
        file.rename(file.with_name(file.name.replace(":", "_")))
    (tree / "Layout/large/test.txt").unlink()
    found = open_spair(f"SPair-71k:root={tree}:split=test")
    assert [pair.target.file for pair in found] == [pair.target.file for pair in expected]


def test_missing_pairs_and_images_are_counted(tree: Path) -> None:
    (tree / "JPEGImages/bus/2008_000001.jpg").unlink()
    with pytest.raises(InputError, match=r"1 file is missing: .*2008_000001\.jpg"):
        open_spair(tree)
    next((tree / "PairAnnotation/test").iterdir()).unlink()
    with pytest.raises(InputError, match=r"4 pairs in PairAnnotation/test; accepted: the 5 of"):
        open_spair(tree)


def test_another_split_or_tree_is_refused(tree: Path) -> None:
    with pytest.raises(InputError, match="without PairAnnotation/val; accepted"):
        open_spair(f"SPair-71k:root={tree}:split=val")
    with pytest.raises(InputError, match="without JPEGImages, PairAnnotation/test"):
        open_spair(tree / "Layout")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trg_kps": [[1, 2]]}, "and 1 keypoints; accepted: those that both"),
        ({"src_kps": [], "trg_kps": []}, "0 and 0 keypoints"),
        ({"src_kps": [["a", 1]]}, "could not convert"),
        ({"trg_bndbox": [5, 5, 5, 9]}, "a box that is not empty"),
        ({"trg_bndbox": [5, 5]}, "accepted: the annotation of a pair"),
        ({"category": None, "src_imsize": None}, "accepted: the annotation of a pair"),
    ],
)
def test_wrong_annotations_are_one_line(tree: Path, change: dict[str, Any], words: str) -> None:
    file = sorted((tree / "PairAnnotation/test").iterdir())[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=words) as caught:
        open_spair(tree)
    assert file.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("{}", "without 'category'"), ("[", "accepted")])
def test_damaged_json_is_one_line(tree: Path, text: str, words: str) -> None:
    sorted((tree / "PairAnnotation/test").iterdir())[0].write_text(text)
    with pytest.raises(InputError, match=words):
        open_spair(tree)
