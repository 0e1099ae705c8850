from __future__ import annotations

import logging
import math

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.image.inputs import (
    beside_encoder,
    check_features,
    check_labelled,
    matched_classes,
)


def part(width: int = 4, labels: list[int] | None = None, value: float = 1.0) -> Embeddings:
    n = 2 if labels is None else len(labels)
    kept = None if labels is None else torch.tensor(labels, dtype=torch.int64)
    return Embeddings([str(i) for i in range(n)], torch.full((n, width), value), kept)


def test_the_width_is_that_of_all() -> None:
    assert check_features(one=part(), other=part()) == 4
    assert check_labelled(one=part(labels=[0]), other=part(labels=[1, 1])) == 4


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (part(5), "other: width 5; accepted: that of one, 4"),
        (part(labels=[]), "other: no images"),
        (part(value=math.inf), "other: features that are not all finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: Embeddings, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        check_features(one=part(), other=other)


@pytest.mark.parametrize("labels", [None, [0, -1]])
def test_images_without_a_label_are_refused(labels: list[int] | None) -> None:
    with pytest.raises(InputError, match="other: images without a label"):
        check_labelled(one=part(labels=[0]), other=part(labels=labels))


def test_what_is_worth_knowing_of_classes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        matched_classes(part(labels=[0, 1]), part(labels=[0]), roles=("index", "query"))
    assert "query: no images of '1', which index has" in caplog.text
    with pytest.raises(InputError, match=r"query: images of '7', which index lacks"):
        matched_classes(part(labels=[0, 1]), part(labels=[7]), roles=("index", "query"))


def test_features_go_where_the_encoder_is() -> None:
    encoder = torch.nn.Linear(4, 4, device="meta")
    moved = beside_encoder(encoder, {"train": part(labels=[0, 1])})["train"]
    assert (moved.features.device.type, moved.labels.device.type) == ("meta", "cpu")
