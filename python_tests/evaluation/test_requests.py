from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.protocol import Reading
from franca_fast.evaluation.requests import parse_dims, parse_request
from franca_fast.models import VisionTransformer


def test_a_line() -> None:
    request = parse_request("knn test='my photos/val' train=a train=b name=birds temperature=0.1")
    assert request.protocol == "knn" and request.name == "birds" and request.dims is None
    assert request.sources == {"test": ["my photos/val"], "train": ["a", "b"]}
    assert request.settings == {"temperature": "0.1"}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("kn train=a test=b", r"protocol: 'kn' .did you mean 'knn'"),
        ("knn train=a", "data of knn: no test"),
        ("knn train=a test=b tset=c", r"protocols: 'tset' .did you mean 'test'"),
        ("knn train=a test=b ks=x", "ks: 'x'"),
        ("knn train=a test=b ks", "protocols: 'ks' in 'knn train=a test=b ks'; accepted: NAME="),
        ("knn train='a test=b", "No closing quotation"),
        ("knn train=a test=b dims=8,x", "dims: '8,x'; accepted: widths"),
        ("", "accepted: PROTOCOL"),
    ],
)
def test_lines_that_are_refused(line: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        parse_request(line)


def test_widths() -> None:
    assert parse_dims("8, 128") == (8, 128)
    with pytest.raises(InputError, match="dims: '0'"):
        parse_dims("0")


def test_figures_by_name_and_width(model: VisionTransformer, images: Path) -> None:
    line = f"knn name=mine train={images} test={images} ks=1"
    found = parse_request(line).figures(model, (8, 32), Reading())
    assert found["mine/8/k=1"] == found["mine/32/k=1"] == 100.0
    only = parse_request(f"{line} dims=4").figures(model, (8, 32), Reading())
    assert {name.split("/")[1] for name in only} == {"4"}


def test_a_protocol_without_widths_has_the_full_one(model: VisionTransformer) -> None:
    line = "object-discovery data=FashionScenes:split=TEST img_size=14"
    assert [*parse_request(line).figures(model, (8, 32), Reading(16))] == [
        "object-discovery/32/CorLoc"
    ]
    found = parse_request(f"{line} feature=tokens").figures(model, (8, 32), Reading(16))
    assert len(found) == 2
    with pytest.raises(InputError, match=r"dims: \(8,\) with feature keys"):
        parse_request(f"{line} dims=8").figures(model, None, Reading())
