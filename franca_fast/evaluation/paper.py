"""Figures of Franca's paper (arXiv 2507.14137 v4), to stand beside ours; +-1 is agreement."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

# Model -> figures, per cent, in the order of `_FIGURES`.
_PAPER = {
    "franca_vitb14": (79.5, 82.6, 89.4, 46.2, 76.7, 35.0, 37.5, 56.4),
    "franca_vitl14": (81.6, 84.9, 90.5, 48.9, 79.5, 39.6, 47.4, 58.9),
    "franca_vitg14": (83.0, 86.0, 90.2, 46.5, 76.7, 36.5, 39.4, 49.2),
    "dinov2_vitb14": (82.1, 84.5, 90.2, 49.7, 77.1, 37.7, 39.2, 52.5),
    "dinov2_vitl14": (83.5, 86.3, 90.3, 50.7, 74.6, 38.6, 26.5, 43.0),
    "dinov2_vitg14": (83.1, 86.0, 90.6, 46.2, 73.7, 37.7, 19.5, 27.7),
}
# Protocol, the data set that its test images come from, and the figure's name in our results. The
# paper does not say at which k its kNN figure was taken: DINOv2's is the best of the four.
_FIGURES = (
    ("knn", "ImageNet", "best k"),
    ("linear", "ImageNet", "top-1"),
    ("linear-segmentation", "VOCSegmentation", "mIoU"),
    ("linear-segmentation", "ADE20K", "mIoU"),
    ("in-context", "VOCSegmentation", "mIoU"),
    ("in-context", "ADE20K", "mIoU"),
    ("overclustering", "VOCSegmentation", "mIoU K=100"),
    ("overclustering", "VOCSegmentation", "mIoU K=300"),
)


def paper_figures(
    model: str, protocol: str, sources: Mapping[str, Sequence[str | os.PathLike[str]]]
) -> dict[str, float]:
    """The paper's figures for a model and data.

    Args:
        model: as it was named; only released names are in the paper.
        protocol: its name.
        sources: role -> sources; those of the last role are what is tested on.

    Returns:
        name of the figure -> per cent; empty where the paper has none.

    Example:
        >>> test = ["VOCSegmentation:root=/data/voc:split=val"]
        >>> paper_figures("franca_vitb14", "in-context", {"test": test})
        {'mIoU': 76.7}
    """
    tested = [os.fspath(one) for one in [*sources.values()][-1]] if sources else []
    data = tested[0].partition(":")[0] if len(tested) == 1 else ""
    if model not in _PAPER or not data:
        return {}
    return {
        figure: value
        for (name, its_data, figure), value in zip(_FIGURES, _PAPER[model], strict=True)
        if name == protocol and its_data == data
    }
