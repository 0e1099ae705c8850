from __future__ import annotations

import logging

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation import Embeddings, knn
from franca_fast.evaluation.class_matching import match_classes

PETS = ["bird", "cat", "dog", "fish"]


def clean(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy features of four classes, and their labels."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(PETS), (count,), generator=draw)
    noise = torch.randn(count, 8, generator=draw)
    return torch.eye(8)[labels] * 2 + noise, labels


def named(features: torch.Tensor, labels: torch.Tensor, names: list[str]) -> Embeddings:
    return Embeddings([f"{i}.png" for i in range(len(labels))], features, labels, class_names=names)


def renumbered(labels: torch.Tensor, names: list[str]) -> torch.Tensor:
    """The labels of PETS in the numbering of another list of the same names."""
    return torch.tensor([names.index(PETS[label]) for label in labels.tolist()])


@pytest.fixture
def train() -> Embeddings:
    return named(*clean(200, 0), PETS)


@pytest.mark.parametrize("seed", range(5))
def test_another_order_of_classes_changes_nothing(train: Embeddings, seed: int) -> None:
    features, labels = clean(100, 9)
    expected = knn(train, named(features, labels, PETS))
    draw = torch.Generator().manual_seed(seed)
    names = [PETS[i] for i in torch.randperm(len(PETS), generator=draw).tolist()] + ["unused"]
    assert knn(train, named(features, renumbered(labels, names), names)) == expected


@pytest.mark.parametrize("lacking", PETS)
def test_a_class_without_test_images_is_said_and_changes_nothing_else(
    train: Embeddings, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = clean(100, 9)
    kept = labels != PETS.index(lacking)
    features, labels = features[kept], labels[kept]
    expected = knn(train, named(features, labels, PETS))
    names = [name for name in PETS if name != lacking]
    test = named(features, renumbered(labels, names), names)
    with caplog.at_level(logging.WARNING):
        assert knn(train, test) == expected
    assert f"no images of '{lacking}'" in caplog.text
    assert match_classes(train, test).untested == [lacking]


@pytest.mark.parametrize(
    ("old", "new", "hint"), [("cat", "cats", "'cat'"), ("dog", "Dog", "'dog'"), ("fish", "", "")]
)
def test_a_renamed_class_is_refused(train: Embeddings, old: str, new: str, hint: str) -> None:
    names = [new if name == old else name for name in PETS]
    with pytest.raises(InputError, match=f"test: images of '{new}'.*{hint}.*train lacks"):
        knn(train, named(*clean(100, 9), names))


def test_numbers_without_names_match_numbers(train: Embeddings) -> None:
    features, labels = clean(100, 9)
    expected = knn(train, named(features, labels, PETS))
    numbers = named(train.features, train.labels, [])
    assert knn(numbers, named(features, labels, [])) == expected
    assert match_classes(numbers, named(features, labels, [])).class_names == []


def test_numbers_match_classes_that_are_named_by_them(
    train: Embeddings, caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = clean(100, 9)
    expected = knn(train, named(features, labels, PETS))
    numbers = named(train.features, train.labels + 7, [])
    with caplog.at_level(logging.WARNING):
        assert knn(numbers, named(features, labels, ["7", "8", "9", "10"])) == expected
    assert "train: classes are numbers without names" in caplog.text


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 1], [2]])
def test_numbers_on_both_sides_are_said_to_be_numbers(
    train: Embeddings, kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    features, labels = clean(100, 9)
    chosen = torch.isin(labels, torch.tensor(kept))
    numbers = named(train.features, train.labels, [])
    with caplog.at_level(logging.WARNING):
        knn(numbers, named(features[chosen], labels[chosen], []))
    assert "classes are numbers without names" in caplog.text


@pytest.mark.parametrize("nameless", ["train", "test"])
def test_numbers_do_not_match_names(train: Embeddings, nameless: str) -> None:
    sets = {"train": train, "test": named(*clean(100, 9), PETS)}
    sets[nameless].class_names = []
    with pytest.raises(InputError, match=r"which train lacks; accepted: the (classes|numbers) of"):
        knn(**sets)


@pytest.mark.parametrize(
    ("apart", "whole"), [("cafe\u0301", "caf\u00e9"), ("\u1100\u1161", "\uac00")]
)
def test_a_class_matches_itself_in_another_form_of_unicode(apart: str, whole: str) -> None:
    train, test = clean(200, 0), clean(100, 9)
    expected = knn(named(*train, PETS), named(*test, PETS))
    names = [["bird", "cat", "dog", name] for name in (apart, whole)]
    assert knn(named(*train, names[0]), named(*test, names[1])) == expected
