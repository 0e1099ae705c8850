from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.image.labelled_sets import open_sets
from python_tests.data.files import png, tar_bytes, write_folder


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "train", ["ant", "bee", "cow", "dog"], 2)


def test_labels_are_numbers_of_the_classes_of_training(train: Path, tmp_path: Path) -> None:
    test = write_folder(tmp_path / "test", ["bee", "dog"], 1)
    opened, others = open_sets({"train": [train], "test": [test]}, {})
    assert opened.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert others["test"].labels.tolist() == [1, 3] == others["test"].classes.tolist()
    assert "no images of 'ant', 'cow'" in others["test"].remarks[0]
    assert others["test"].described()["classes"] == 2


def test_numbers_without_names_may_have_gaps(tmp_path: Path) -> None:
    for name, labels in (("train", (70, 7, 500)), ("test", (500, 7))):
        members = [
            member
            for i, label in enumerate(labels)
            for member in ((f"{i}.png", png(i)), (f"{i}.cls", str(label).encode()))
        ]
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(members))
    opened, others = open_sets(
        {"train": [tmp_path / "train.tar"], "test": [tmp_path / "test.tar"]}, {}
    )
    assert opened.labels.tolist() == [1, 0, 2] and others["test"].labels.tolist() == [2, 0]
    assert len(opened.classes) == 3


def test_further_sets_have_the_names_of_their_folders(train: Path, tmp_path: Path) -> None:
    more = write_folder(tmp_path / "a" / "more", ["ant"], 1)
    test = write_folder(tmp_path / "b" / "test", ["ant"], 1)
    _, others = open_sets({"train": [train], "test": [train], "further": [more, test]}, {})
    assert list(others) == ["test", "more", str(test)]
    with pytest.raises(InputError, match="twice"):
        open_sets({"train": [train], "test": [train], "further": [more, test, test]}, {})


def test_val_and_test_may_be_several_sources_each(train: Path, tmp_path: Path) -> None:
    more = write_folder(tmp_path / "more", ["cow"], 3)
    _, others = open_sets(
        {"train": [train], "test": [train, more], "validation": [more, train]}, {}
    )
    assert [len(others[name].labels) for name in ("validation", "test")] == [11, 11]


def test_numbers_of_classes_are_places_in_the_list_of_classes(train: Path, tmp_path: Path) -> None:
    test = write_folder(tmp_path / "numbers", ["0", "2", "10"], 1)
    names = ["cow", "x", "dog", *"abcdefg", "ant"]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    listed = str(tmp_path / "classes.txt")
    _, others = open_sets({"train": [train], "test": [test]}, {}, listed)
    assert others["test"].labels.tolist() == [2, 0, 3]  # cow, ant, dog: 0, 10, 2
    _, others = open_sets({"train": [train], "test": [train]}, {}, listed)  # has names itself
    assert others["test"].labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(InputError, match="which train lacks"):
        open_sets({"train": [train], "test": [test]}, {})
    (tmp_path / "classes.txt").write_text("cow\nx\ndog\n")
    with pytest.raises(InputError, match="class_list: 3 names for class 10"):
        open_sets({"train": [train], "test": [test]}, {}, listed)
    with pytest.raises(InputError, match=r"class_list: .*accepted: a file"):
        open_sets({"train": [train], "test": [test]}, {}, str(tmp_path / "no.txt"))


def test_images_without_a_label_are_refused(train: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").write_bytes(png(0))
    for roles in (("train", "test"), ("test", "train")):
        sources = dict(zip(roles, ([tmp_path / "bare"], [train]), strict=True))
        with pytest.raises(InputError, match=f"{roles[0]}: images without a label"):
            open_sets(sources, {})
