"""Weighted k-nearest-neighbour classification of frozen features, as DINO does it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from franca_fast.errors import InputError
from franca_fast.evaluation.class_matching import match_classes, no_label
from franca_fast.evaluation.embeddings import Embeddings

logger = logging.getLogger(__name__)

DEFAULT_KS = (10, 20, 100, 200)
_SIMILARITIES_AT_ONCE = 2**25  # test rows x train rows held in memory, 128 MiB of float32


def knn(
    train: Embeddings,
    test: Embeddings,
    ks: Sequence[int] = DEFAULT_KS,
    temperature: float = 0.07,
    nesting_dims: Sequence[int] | None = None,
) -> dict[int, dict[int, float]]:
    """Accuracy of weighted kNN on `test`, with `train` as the memory.

    A test image x votes with its k most similar training images i (cosine similarity s_i), each
    with weight exp(s_i / T) for its own class (Wu et al. 2018; Caron et al. 2021). For a nested
    dimension m the features are cut to their first m entries and normalised again.

    Args:
        train: labelled features [n, d].
        test: labelled features [t, d]. Its classes are matched with those of `train` by name (see
            `match_classes`).
        ks: numbers of neighbours; a k above n uses all n.
        temperature: T.
        nesting_dims: values of m; None means the full width only.

    Returns:
        {m: {k: accuracy in per cent}}.

    Raises:
        InputError: no labels, a class that training lacks, classes that cannot be matched, widths
            that differ, features that are not finite, or a bad k or m.

    Example:
        >>> x = Embeddings(["a", "b"], torch.eye(2), torch.tensor([0, 1]))
        >>> knn(x, x, ks=(1,))
        {2: {1: 100.0}}
    """
    width = _check(train, test, ks, temperature)
    dims = (width,) if nesting_dims is None else tuple(nesting_dims)
    if not dims or not all(0 < m <= width for m in dims):
        raise InputError(f"nesting_dims: {dims}; accepted: each from 1 to the width {width}")
    matched = match_classes(train, test)
    labels = matched.test
    for remark in matched.remarks:
        logger.warning("%s", remark, extra={"once_in_a_run": True})
    return {
        m: {
            k: 100.0 * (predicted == labels).double().mean().item()
            for k, predicted in knn_predict(
                train.features[:, :m], matched.train, test.features[:, :m], ks, temperature
            ).items()
        }
        for m in dims
    }


@torch.no_grad()
def knn_predict(
    memory: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], temperature: float
) -> dict[int, Tensor]:
    """Classes that weighted kNN predicts; see `knn`.

    Args:
        memory: [n, d].
        labels: int64 [n].
        queries: [t, d], on the memory's device.
        ks: numbers of neighbours; a k above n uses all n.
        temperature: T.

    Returns:
        k -> predicted labels, int64 [t].
    """
    classes, class_of = labels.unique(return_inverse=True)
    # Features of an untrained network differ so little that their cosines are equal in float32.
    # With the memory's mean c taken out, x.y = (x - c).(y - c) + c.(y - c) + x.c, and the last
    # term is the same for all of a query's neighbours: it changes neither their order nor the
    # ratio of their votes, and what is left keeps its relative accuracy.
    unit = _unit(memory)
    mean = unit.mean(0)
    centred = unit - mean
    offset, centred = (centred @ mean).float(), centred.T.float().contiguous()
    n = len(unit)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in queries.split(max(1, _SIMILARITIES_AT_ONCE // n)):
        similarities = torch.addmm(offset, (_unit(rows) - mean).float(), centred)
        similarity, nearest = similarities.topk(min(max(ks), n))
        # Relative to the most similar, so that no temperature overflows; in float64, so that the
        # votes of neighbours that are nearly as similar still break ties.
        weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
        voted = class_of[nearest]
        for k in ks:
            votes = weights.new_zeros(len(rows), len(classes))
            votes.scatter_add_(1, voted[:, :k], weights[:, :k])
            predictions[k].append(classes[votes.argmax(1)])
    return {k: torch.cat(parts) for k, parts in predictions.items()}


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


def _check(train: Embeddings, test: Embeddings, ks: Sequence[int], temperature: float) -> int:
    for role, part in (("train", train), ("test", test)):
        if len(part) == 0:
            raise InputError(f"{role}: no images; accepted: one or more")
        if part.labels is None or bool((part.labels < 0).any()):
            first = part.names[0 if part.labels is None else int((part.labels < 0).nonzero()[0])]
            raise no_label(role, first)
        if not bool(torch.isfinite(part.features).all()):
            raise InputError(f"{role}: features that are not all finite; accepted: finite ones")
    width = train.features.shape[1]
    if test.features.shape[1] != width:
        raise InputError(f"test: width {test.features.shape[1]}; accepted: that of train, {width}")
    if not ks or min(ks) < 1:
        raise InputError(f"ks: {tuple(ks)}; accepted: numbers of neighbours, each 1 or more")
    if not temperature > 0:
        raise InputError(f"temperature: {temperature}; accepted: a positive number")
    return width
