"""How well scores tell images of unknown kinds from those of the known ones: OpenOOD's figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from franca_fast.errors import InputError
from franca_fast.evaluation.extras import need

TRUE_POSITIVES = 0.95  # at which the rate of false positives is read


def detection_figures(
    known: NDArray[np.floating], unknown: NDArray[np.floating]
) -> dict[str, float]:
    """AUROC, both areas under precision and recall, and FPR@95, with OpenOOD v1.5's conventions.

    Args:
        known: scores of images of the known classes [a]; higher means more likely of these.
        unknown: scores of the others [b].

    Returns:
        figures in per cent:
        - "AUROC": area under the ROC curve; ties count half.
        - "FPR@95": share of known images taken for unknown at the first threshold that finds 95 %
          of the unknown ones, without interpolation.
        - "AUPR-out", "AUPR-in": area under the precision-recall curve, by trapezoids (which is no
          average precision), with the unknown and with the known images as positives.

    Raises:
        InputError: no scores, scores that are not finite, or scikit-learn is not installed.

    Example:
        >>> detection_figures(np.array([3.0, 2.0]), np.array([1.0]))["AUROC"]
        100.0
    """
    metrics = need("sklearn.metrics", "the detection of unknown images")
    for name, scores in (("known", known), ("unknown", unknown)):
        if not len(scores) or not np.isfinite(scores).all():
            raise InputError(f"scores of {name} images; accepted: one or more, all finite")
    scores = np.concatenate([known, unknown]).astype(np.float64)
    is_unknown = np.arange(len(scores)) >= len(known)
    # No point of the curve is left out, so that the threshold is the first one.
    false, true, _ = metrics.roc_curve(is_unknown, -scores, drop_intermediate=False)
    out_precision, out_recall, _ = metrics.precision_recall_curve(is_unknown, -scores)
    in_precision, in_recall, _ = metrics.precision_recall_curve(~is_unknown, scores)
    figures = {
        "AUROC": metrics.auc(false, true),
        "FPR@95": false[np.argmax(true >= TRUE_POSITIVES)],
        "AUPR-out": metrics.auc(out_recall, out_precision),
        "AUPR-in": metrics.auc(in_recall, in_precision),
    }
    return {name: 100.0 * float(value) for name, value in figures.items()}
