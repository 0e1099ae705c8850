from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.image import cosine
from franca_fast.evaluation.image import retrieval as module
from franca_fast.evaluation.image.retrieval import (
    RetrievalSettings,
    ranked_relevance,
    retrieval,
)
from franca_fast.models import build_backbone
from python_tests.evaluation.golden import arrays


def embeddings(features: Tensor, labels: Tensor) -> Embeddings:
    return Embeddings([str(i) for i in range(len(features))], features, labels)


@pytest.fixture
def data() -> tuple[Embeddings, Embeddings]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 16, generator=generator)
    parts = []
    for n in (23, 50):
        labels = torch.arange(n) % 6
        features = centres[labels] + 2 * torch.randn(n, 16, generator=generator)
        parts.append(embeddings(features, labels))
    return parts[0], parts[1]


def brute_force(query: Embeddings, index: Embeddings, m: int, one_set: bool) -> dict[str, float]:
    """Everything with Python's own numbers, one query after the other."""
    assert query.labels is not None and index.labels is not None
    rows: dict[str, list[float]] = {}
    for q, (x, label) in enumerate(
        zip(query.features[:, :m].tolist(), query.labels.tolist(), strict=True)
    ):
        found = []
        for i, (y, other) in enumerate(
            zip(index.features[:, :m].tolist(), index.labels.tolist(), strict=True)
        ):
            if not (one_set and i == q):
                dot = sum(a * b for a, b in zip(x, y, strict=True))
                found.append((-dot / math.hypot(*x) / math.hypot(*y), other == label))
        ranks = [rank for rank, (_, right) in enumerate(sorted(found), 1) if right]
        if not ranks:
            continue
        figures = {"mAP": sum(j / rank for j, rank in enumerate(ranks, 1)) / len(ranks)}
        figures["mAP, trapezoids"] = sum(
            ((1 if rank == 1 else (j - 1) / (rank - 1)) + j / rank) / 2 / len(ranks)
            for j, rank in enumerate(ranks, 1)
        )
        for k in (1, 5, 10):
            figures[f"recall@{k}"] = ranks[0] <= k
            length = min(k, ranks[-1])
            figures[f"precision@{k}"] = sum(rank <= length for rank in ranks) / length
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)
    return {name: 100 * sum(found) / len(found) for name, found in rows.items()}


def test_equals_brute_force_between_two_sets(data: tuple[Embeddings, Embeddings]) -> None:
    result = retrieval(*data, dims=(3, 16))
    for m in (3, 16):
        assert result.figures[m] == pytest.approx(brute_force(*data, m, one_set=False))
    assert result.details["each query is left out of the index"] is False
    json.dumps(result.as_dict())


def test_equals_brute_force_with_the_query_left_out(data: tuple[Embeddings, Embeddings]) -> None:
    _, one = data
    expected = brute_force(one, one, 16, one_set=True)
    assert expected["recall@1"] < 90
    assert retrieval(one).figures[16] == pytest.approx(expected)
    again = embeddings(one.features.clone(), one.labels.clone())
    result = retrieval(one, again)  # the same set, read twice
    assert result.figures[16] == pytest.approx(expected)
    assert result.details["each query is left out of the index"] is True


def test_the_ranking_is_dinos() -> None:
    given = arrays()
    query, index = given["retrieval.query_features"], given["retrieval.index_features"]
    labels = torch.arange(len(index))
    for row, ranks in enumerate(given["retrieval.ranks"].T):
        # With the image at one rank alone relevant, it must be found at this rank.
        for rank in (0, 1, 29, 59):
            own = ranks[rank][None]
            (ranked,) = ranked_relevance(query[row][None], index, own, labels, one_set=False)
            assert ranked[0].nonzero().tolist() == [[rank]]


def test_an_image_as_similar_as_a_relevant_one_comes_before_it() -> None:
    index = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0, 0])
    query, own = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [1, 0, 2, 3]):
        (ranked,) = ranked_relevance(query, index[order], own, labels[order], one_set=False)
        assert ranked.tolist() == [[False, True, True, True]]


def test_blocks_change_nothing(
    data: tuple[Embeddings, Embeddings], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, one_set = retrieval(*data).figures, retrieval(data[1]).figures
    for owner, rows in ((module, 7), (cosine, 3)):
        monkeypatch.setattr(owner, "_SIMILARITIES_AT_ONCE", 50 * rows)
        assert retrieval(*data).figures == whole
        assert retrieval(data[1]).figures == one_set


def test_order_of_files_and_names_of_classes_change_nothing(
    data: tuple[Embeddings, Embeddings],
) -> None:
    generator = torch.Generator().manual_seed(5)
    new = torch.randperm(6, generator=generator)
    changed = []
    for one in data:
        assert one.labels is not None
        order = torch.randperm(len(one), generator=generator)
        changed.append(embeddings(one.features[order], new[one.labels[order]]))
    assert retrieval(*changed).figures[16] == pytest.approx(retrieval(*data).figures[16])
    assert retrieval(changed[1]).figures[16] == pytest.approx(retrieval(data[1]).figures[16])


def test_an_image_alone_in_its_class_is_left_out_and_counted() -> None:
    one = embeddings(torch.eye(4)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]))
    result = retrieval(one)
    assert result.details["queries without a relevant image, left out"] == 2
    assert result.figures[4]["mAP"] == 100.0
    two = embeddings(torch.eye(4), torch.tensor([0, 0, 1, 9]))
    searched = retrieval(embeddings(torch.eye(4)[:2], torch.tensor([0, 1])), two)
    assert searched.details["queries without a relevant image, left out"] == 0


@pytest.mark.parametrize(
    ("query", "index", "complaint"),
    [
        (torch.arange(4), None, "query: no two images of one class"),
        (torch.tensor([0, 0, 1, -1]), None, "query: images without a label"),
        (torch.tensor([0, 0, 1, 5]), torch.tensor([0, 1, 1, 1]), "query: images of '5', which ind"),
    ],
)
def test_wrong_input_is_named(query: Tensor, index: Tensor | None, complaint: str) -> None:
    searched = None if index is None else embeddings(torch.eye(4).flip(0), index)
    with pytest.raises(InputError, match=complaint):
        retrieval(embeddings(torch.eye(4), query), searched)


@pytest.mark.parametrize("ks", [(), (0,), (1, -1)])
def test_wrong_settings_are_named(ks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="ks: "):
        RetrievalSettings(ks=ks)


@pytest.mark.parametrize("index", [{}, {"index": "FashionMNIST:split=TEST"}])
def test_the_protocol_leaves_the_query_out_of_its_own_set(index: dict[str, Any]) -> None:
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
    data = {"query": "FashionMNIST:split=TEST", **index}
    result = evaluate("retrieval", model, data, dims=(16,))
    names = ["mAP", "recall@1", "recall@5", "recall@10", "mAP, trapezoids"]
    assert list(result.figures[16])[:5] == names
    assert 10 < result.figures[16]["recall@1"] < 100
    assert result.details["each query is left out of the index"] is True


def _rank_on_the_gpu() -> None:
    few = mock.patch.object(module, "_SIMILARITIES_AT_ONCE", 50 * 7)
    with few, torch.device("cuda"):
        x, labels = torch.randn(50, 16), torch.zeros(50, dtype=torch.int64)
        for ranked in ranked_relevance(x, x, labels, labels, one_set=True):
            assert (ranked.device.type, ranked.shape[1]) == ("cuda", 50)


def test_a_gpu_ranks_without_a_wait(fake_gpu: Callable[..., Any]) -> None:
    assert fake_gpu(_rank_on_the_gpu) == {}
