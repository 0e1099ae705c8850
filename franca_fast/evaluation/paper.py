"""Figures of Franca's paper (arXiv 2507.14137 v4), to stand beside ours; +-1 is agreement."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

_MODELS = (
    *("franca_vitb14", "franca_vitl14", "franca_vitg14"),
    *("dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14"),
)
# Protocol, what the test data are called, the figure's name in our results, and its value for each
# of the models above; None where the paper has none. It does not say at which k its kNN figure was
# taken: DINOv2's is the best of the four.
_Row = tuple[str, str, str, tuple[float | None, ...]]
_FIGURES: tuple[_Row, ...] = (
    ("knn", "ImageNet:", "best k", (79.5, 81.6, 83.0, 82.1, 83.5, 83.1)),
    ("linear", "ImageNet:", "top-1", (82.6, 84.9, 86.0, 84.5, 86.3, 86.0)),
    ("linear-segmentation", "VOCSegmentation:", "mIoU", (89.4, 90.5, 90.2, 90.2, 90.3, 90.6)),
    ("linear-segmentation", "ADE20K:", "mIoU", (46.2, 48.9, 46.5, 49.7, 50.7, 46.2)),
    ("in-context", "VOCSegmentation:", "mIoU", (76.7, 79.5, 76.7, 77.1, 74.6, 73.7)),
    ("in-context", "ADE20K:", "mIoU", (35.0, 39.6, 36.5, 37.7, 38.6, 37.7)),
    ("overclustering", "VOCSegmentation:", "mIoU K=100", (37.5, 47.4, 39.4, 39.2, 26.5, 19.5)),
    ("overclustering", "VOCSegmentation:", "mIoU K=300", (56.4, 58.9, 49.2, 52.5, 43.0, 27.7)),
    ("keypoints", "SPair-71k:", "recall@0.10", (45.6, 51.76, None, 55.98, 56.92, None)),
    ("video", "DAVIS:", "J&F", (70.6, 69.1, None, None, None, None)),
    ("object-discovery", "VOC2007", "CorLoc", (53.2, 59.5, None, None, None, None)),
    ("object-discovery", "VOC2012", "CorLoc", (59.1, 61.0, None, None, None, None)),
)

# The splits that it tests on; None is that of a source which does not say it.
_SPLITS: dict[str, tuple[str | None, ...]] = {
    "ImageNet:": ("val",),
    "VOCSegmentation:": ("val",),
    "ADE20K:": ("validation",),
    "SPair-71k:": ("test", None),
    "DAVIS:": ("val", None),
}


def paper_figures(
    model: str, protocol: str, sources: Mapping[str, Sequence[str | os.PathLike[str]]]
) -> dict[str, float]:
    """The paper's figures for a model and data.

    Args:
        model: as it was named; only released names are in the paper.
        protocol: its name.
        sources: role -> sources; those of "test", or else of "data", are what is tested on.

    Returns:
        name of the figure -> per cent; empty where the paper has none.

    Example:
        >>> test = ["VOCSegmentation:root=/data/voc:split=val"]
        >>> paper_figures("franca_vitb14", "in-context", {"test": test})
        {'mIoU': 76.7}
    """
    tested = [os.fspath(one) for one in sources.get("test", sources.get("data", ()))]
    if model not in _MODELS or len(tested) != 1:
        return {}
    place = _MODELS.index(model)
    return {
        figure: value
        for name, data, figure, values in _FIGURES
        if name == protocol and _is_theirs(tested[0], data) and (value := values[place]) is not None
    }


def _is_theirs(source: str, data: str) -> bool:
    """Whether a source is the split of a data set on which the paper tests."""
    split = re.search(r":split=(\w+)", source)
    accepted = _SPLITS.get(data, ())
    return data in source and (not accepted or (split[1].lower() if split else None) in accepted)
