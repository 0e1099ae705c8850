from __future__ import annotations

import importlib
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.image.knn import knn, knn_predict


def embeddings(features: Tensor, labels: Tensor | None) -> Embeddings:
    return Embeddings([str(i) for i in range(len(features))], features, labels)


@pytest.fixture
def data() -> tuple[Embeddings, Embeddings]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 16, generator=generator)
    parts = []
    for n in (60, 31):
        labels = torch.randint(5, (n,), generator=generator)
        features = centres[labels] + 1.5 * torch.randn(n, 16, generator=generator)
        parts.append(embeddings(features, labels * 10 + 3))
    return parts[0], parts[1]


def brute_force(train: Embeddings, test: Embeddings, k: int, temperature: float, m: int) -> float:
    """Weighted kNN written out with Python's own numbers."""
    assert train.labels is not None and test.labels is not None
    correct = 0
    for x, label in zip(test.features[:, :m].tolist(), test.labels.tolist(), strict=True):
        neighbours = []
        for y, other in zip(train.features[:, :m].tolist(), train.labels.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(x, y, strict=True))
            cosine /= math.hypot(*x) * math.hypot(*y)
            neighbours.append((cosine, other))
        votes: dict[int, float] = defaultdict(float)
        for cosine, other in sorted(neighbours, reverse=True)[:k]:
            votes[other] += math.exp(cosine / temperature)
        correct += max(votes, key=lambda name: votes[name]) == label
    return 100.0 * correct / len(test)


def test_equals_brute_force_at_every_nested_dimension(data: tuple[Embeddings, Embeddings]) -> None:
    train, test = data
    table = knn(train, test, ks=(1, 5, 20), temperature=0.07, nesting_dims=(2, 4, 16))
    for m in (2, 4, 16):
        for k in (1, 5, 20):
            assert table[m][k] == pytest.approx(brute_force(train, test, k, 0.07, m)), (m, k)


def test_nearly_equal_features_are_told_apart(data: tuple[Embeddings, Embeddings]) -> None:
    """As those of an untrained network, whose cosines are all the same in float32."""
    common = torch.randn(16, generator=torch.Generator().manual_seed(1))
    train, test = (embeddings(common + 1e-4 * part.features, part.labels) for part in data)
    cosines = torch.nn.functional.cosine_similarity(test.features[:1], train.features)
    assert len(cosines.unique()) < 10  # what makes this a test
    accuracy = knn(train, test, ks=(5,))[16][5]
    assert accuracy == pytest.approx(brute_force(train, test, 5, 0.07, 16))
    assert accuracy > 60


def test_nested_accuracies_differ(data: tuple[Embeddings, Embeddings]) -> None:
    table = knn(*data, ks=(10,), nesting_dims=(1, 16))
    assert table[16][10] > table[1][10] + 10


def test_chunks_change_nothing(
    data: tuple[Embeddings, Embeddings], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = knn(*data, ks=(3, 10))
    module = importlib.import_module("franca_fast.evaluation.image.cosine")
    monkeypatch.setattr(module, "_SIMILARITIES_AT_ONCE", 60 * 7)
    assert knn(*data, ks=(3, 10)) == whole


def test_more_neighbours_than_images_uses_all(data: tuple[Embeddings, Embeddings]) -> None:
    table = knn(*data, ks=(60, 200))
    assert table[16][200] == table[16][60]


def test_full_width_by_default(data: tuple[Embeddings, Embeddings]) -> None:
    assert list(knn(*data)) == [16]
    assert list(knn(*data)[16]) == [10, 20, 100, 200]


def test_scale_of_features_changes_nothing(data: tuple[Embeddings, Embeddings]) -> None:
    train, test = data
    scales = torch.logspace(-3, 3, len(train)).unsqueeze(1)
    assert knn(embeddings(train.features * scales, train.labels), test) == knn(train, test)


def test_small_temperature_votes_like_one_neighbour(data: tuple[Embeddings, Embeddings]) -> None:
    table = knn(*data, ks=(1, 50), temperature=1e-5)
    assert table[16][50] == table[16][1]


def test_class_that_training_lacks_is_refused() -> None:
    train = embeddings(torch.eye(2), torch.tensor([0, 1]))
    test = embeddings(torch.eye(2), torch.tensor([0, 7]))
    with pytest.raises(InputError, match=r"test: images of '7', which train lacks; .*'0', '1'"):
        knn(train, test, ks=(1,))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a: a.update(ks=(0,)), "ks"),
        (lambda a: a.update(ks=()), "ks"),
        (lambda a: a.update(temperature=0.0), "temperature"),
        (lambda a: a.update(nesting_dims=(4, 17)), "each from 1 to the width 16"),
        (lambda a: a.update(nesting_dims=(0,)), "each from 1 to the width 16"),
        (lambda a: setattr(a["train"], "labels", None), "train: images without a label"),
        (lambda a: a["test"].labels.__setitem__(0, -1), "test: images without a label"),
        (lambda a: a["test"].features.__setitem__((0, 0), math.nan), "test: features"),
        (lambda a: a.update(test=embeddings(torch.zeros(0, 16), None)), "test: no images"),
        (
            lambda a: a.update(train=embeddings(torch.ones(1, 8), torch.ones(1).long())),
            "that of train, 8",
        ),
    ],
)
def test_wrong_input_is_named(data: tuple[Embeddings, Embeddings], change, complaint: str) -> None:
    arguments = {"train": data[0], "test": data[1]}
    change(arguments)
    with pytest.raises(InputError, match=complaint):
        knn(**arguments)


def _predict_on_the_gpu() -> None:
    module = importlib.import_module("franca_fast.evaluation.image.cosine")
    five_batches = mock.patch.object(module, "_SIMILARITIES_AT_ONCE", 60 * 7)
    with five_batches, torch.device("cuda"):
        labels = torch.zeros(60, dtype=torch.int64)
        predicted = knn_predict(torch.randn(60, 16), labels, torch.randn(31, 16), (1, 10), 0.07)
    for classes in predicted.values():
        assert (classes.device.type, classes.shape) == ("cuda", (31,))


def test_a_gpu_predicts_without_a_wait_for_each_batch(fake_gpu: Callable[..., Any]) -> None:
    assert fake_gpu(_predict_on_the_gpu) == {"evaluation/image/knn.py: knn_predict": 1}
