"""Retrieval of images of the same class by the cosine similarity of their features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from franca_fast.data import open_source
from franca_fast.errors import InputError
from franca_fast.evaluation.class_matching import check_sources
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.image.cosine import CosineMemory
from franca_fast.evaluation.image.embedded import described, embed_roles
from franca_fast.evaluation.image.inputs import beside_encoder, check_labelled, matched_classes
from franca_fast.evaluation.image.ranking import (
    average_precision,
    precision_at,
    recall_at,
    trapezoidal_average_precision,
)
from franca_fast.evaluation.protocol import Protocol, Reading, Role, Sources, check_dims
from franca_fast.evaluation.result import Result

_SIMILARITIES_AT_ONCE = 2**23  # queries x index sorted at once
_ROLES = ("index", "query")


@dataclass(frozen=True)
class RetrievalSettings:
    """Settings of retrieval.

    Raises:
        InputError: a value out of its range.
    """

    ks: tuple[int, ...] = (1, 5, 10)  # of recall@k and precision@k
    # Side of the images, pixels; None: 224, or the encoder's own where that is smaller.
    img_size: int | None = None
    # Pixels that the shorter side gets first (bicubic); None: 256 with 224 pixels, else the side.
    resize: int | None = None

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise InputError(f"ks: {self.ks}; accepted: lengths of lists, each 1 or more")


def retrieval(
    query: Embeddings,
    index: Embeddings | None = None,
    settings: RetrievalSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
) -> Result:
    """How well images of a query's class are found among all of an index.

    For each query the index is ranked by cosine similarity; images of its class are relevant. An
    image that is as similar as a relevant one comes before it, so that no order of files matters.

    Args:
        query: labelled features [q, d].
        index: labelled features [n, d]; its classes are matched with those of `query` by name.
            None, or the very same names and features, ranks each image of `query` among all others.
        settings: None takes the protocol's.
        dims: widths m that features are cut to, before they are normalised; None means the full
            width only.

    Returns:
        figures, in per cent: "mAP" (mean of `average_precision`), "recall@1" ... (queries with a
        relevant image among the first k), "mAP, trapezoids" and "precision@1", ... as DINO's
        retrieval has them (see `ranking`). Queries that are alone in their class are left out of
        all, and counted in the details.

    Raises:
        InputError: images without a label, features that are not finite, widths that differ,
            classes of `query` that `index` lacks, or no query with a relevant image.

    Example:
        >>> x = Embeddings(["a", "b", "c"], torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0]))
        >>> retrieval(x, settings=RetrievalSettings(ks=(1,))).figures[3]["recall@1"]
        100.0
    """
    settings = settings or RetrievalSettings()
    one_set = index is None or _equal(query, index)
    parts = {"query": query} if index is None else {"query": query, "index": index}
    chosen = check_dims(dims, check_labelled(**parts))
    searched = query if index is None else index
    matched = matched_classes(searched, query, roles=_ROLES)
    device = query.features.device
    labels = matched.test.to(device), matched.train.to(device)
    result = Result(
        "retrieval",
        {},
        settings,
        {role: described(part) for role, part in parts.items()},
        details={"each query is left out of the index": one_set, "remarks": matched.remarks},
    )
    for m in chosen:
        features = (query.features[:, :m], searched.features[:, :m])
        figures, without = _figures(*features, labels, one_set, settings.ks)
        result.figures[m] = figures
        result.details["queries without a relevant image, left out"] = without
    return result


def ranked_relevance(
    query: Tensor, index: Tensor, query_labels: Tensor, index_labels: Tensor, one_set: bool
) -> Iterator[Tensor]:
    """Ranks an index for each query, a block of queries at a time.

    Args:
        query: [q, d].
        index: [n, d].
        query_labels: int64 [q].
        index_labels: int64 [n], in the same numbering.
        one_set: both are one set, and the query itself is left out.

    Yields:
        bool [b, n], whether the 1st, 2nd, ... most similar entry of the index is relevant; with
        `one_set` the last entry is the query, as not relevant.

    Example:
        >>> x, labels = torch.eye(2), torch.tensor([0, 1])
        >>> [block.tolist() for block in ranked_relevance(x, x, labels, labels, False)]
        [[[True, False], [True, False]]]
    """
    memory, n, begin = CosineMemory(index), len(index), 0
    for rows in query.split(max(1, _SIMILARITIES_AT_ONCE // n)):
        for similarities, _ in memory.compared(rows):
            end = begin + len(similarities)
            relevant = query_labels[begin:end, None] == index_labels
            if one_set:
                own = torch.arange(begin, end, device=index.device)[:, None]
                similarities.scatter_(1, own, -torch.inf)
                relevant.scatter_(1, own, False)
            # Sorted twice, and the second time stably: what is not relevant comes first in a tie.
            first = relevant.byte().argsort(dim=1, stable=True)
            order = similarities.gather(1, first).argsort(dim=1, descending=True, stable=True)
            yield relevant.gather(1, first.gather(1, order))
            begin = end


@torch.no_grad()
def _figures(
    query: Tensor,
    index: Tensor,
    labels: tuple[Tensor, Tensor],
    one_set: bool,
    ks: Sequence[int],
) -> tuple[dict[str, float], int]:
    """Name of a figure -> its mean over queries; and how many queries have nothing to find."""
    parts: dict[str, list[Tensor]] = {}
    without = 0
    for ranked in ranked_relevance(query, index, *labels, one_set):
        some = ranked.any(1)
        without += int((~some).sum())
        ranked = ranked[some]
        values = {"mAP": average_precision(ranked)}
        values |= {f"recall@{k}": recall_at(ranked, k).double() for k in ks}
        values["mAP, trapezoids"] = trapezoidal_average_precision(ranked)
        values |= {f"precision@{k}": precision_at(ranked, k) for k in ks}
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    if without == len(query):
        raise InputError("query: no two images of one class; accepted: some to be found")
    return {
        name: 100.0 * float(torch.cat(values).mean()) for name, values in parts.items()
    }, without


def _equal(query: Embeddings, index: Embeddings) -> bool:
    return query.names == index.names and torch.equal(query.features, index.features)


def _run(
    encoder: Encoder,
    sources: Mapping[str, Sources],
    settings: RetrievalSettings,
    dims: Sequence[int] | None,
    reading: Reading,
) -> Result:
    index = sources.get("index", sources["query"])
    roles = _ROLES if "index" in sources else ("query", "query")
    check_sources(index, sources["query"], roles=roles)
    # Named twice, it is one set, and read once.
    named = {"query": sources["query"]} if index == sources["query"] else sources
    parts = embed_roles(encoder, named, settings.img_size, settings.resize, reading)
    parts = beside_encoder(encoder, parts)
    return retrieval(parts["query"], parts.get("index"), settings, dims=dims)


PROTOCOL = Protocol(
    "retrieval",
    "images of the same class by cosine similarity: mAP and recall at 1, 5 and 10",
    RetrievalSettings,
    (
        Role(
            "query",
            "labelled images: a folder of class folders, or shards with .cls members",
            opens=open_source,
        ),
        Role(
            "index",
            "labelled images to search (query itself, one left out)",
            required=False,
            opens=open_source,
        ),
    ),
    _run,
)
