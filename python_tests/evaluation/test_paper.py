from __future__ import annotations

from franca_fast.evaluation.evaluate import protocols
from franca_fast.evaluation.paper import _FIGURES, paper_figures

VOC = "VOCSegmentation:root=/voc:split=val"


def test_figures_of_the_specification() -> None:
    given = {"train": ["VOCSegmentation:root=/voc"], "test": [VOC]}
    assert paper_figures("franca_vitl14", "in-context", given) == {"mIoU": 79.5}
    assert paper_figures("dinov2_vitg14", "linear", {"test": ["ImageNet:root=/i:split=VAL"]}) == {
        "top-1": 86.0
    }
    given = {"data": [VOC]}
    found = paper_figures("franca_vitb14", "overclustering", given)
    assert sorted(found.values()) == [37.5, 56.4]
    given = {"data": ["data/VOCdevkit/VOC2012"]}
    assert paper_figures("franca_vitb14", "object-discovery", given) == {"CorLoc": 59.1}
    assert paper_figures("franca_vitg14", "object-discovery", given) == {}


def test_other_models_and_data_have_none() -> None:
    assert paper_figures("runs/mine", "in-context", {"test": [VOC]}) == {}
    assert paper_figures("franca_vitl14", "in-context", {"test": ["voc/val"]}) == {}
    assert paper_figures("franca_vitl14", "in-context", {"test": [VOC + "idation"]}) == {}
    assert paper_figures("franca_vitl14", "in-context", {"test": [VOC[:-10]]}) == {}
    assert paper_figures("franca_vitl14", "video", {"data": ["DAVIS:root=/d:split=train"]}) == {}
    assert paper_figures("franca_vitl14", "video", {"data": ["DAVIS:root=/d"]}) == {"J&F": 69.1}
    assert paper_figures("franca_vitl14", "retrieval", {"test": [VOC]}) == {}
    assert paper_figures("franca_vitl14", "knn", {}) == {}


def test_the_protocols_exist() -> None:
    assert {name for name, *_ in _FIGURES} <= set(protocols())
