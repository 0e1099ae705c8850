"""Weighted k-nearest-neighbour classification of frozen features, as DINO does it."""

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
from franca_fast.evaluation.image.accuracy import accuracies, among_best, best_of
from franca_fast.evaluation.image.cosine import CosineMemory
from franca_fast.evaluation.image.embedded import described, embed_roles
from franca_fast.evaluation.image.inputs import beside_encoder, check_labelled, matched_classes
from franca_fast.evaluation.protocol import Protocol, Reading, Role, Sources, check_dims
from franca_fast.evaluation.result import Result
from franca_fast.spelling import spell

DEFAULT_KS = (10, 20, 100, 200)


@dataclass(frozen=True)
class KnnSettings:
    """Settings of kNN; the defaults are DINO's.

    Raises:
        InputError: a value out of its range.
    """

    ks: tuple[int, ...] = DEFAULT_KS  # numbers of neighbours; a k above the train images uses all
    temperature: float = 0.07  # T of the votes exp(similarity / T)
    # Few-shot: images that each class keeps, each a figure of its own beside that of all images.
    per_class: tuple[int, ...] = ()
    tries: int = 5  # draws of these images; try i is drawn with seed i
    # Side of the images, pixels; None: 224, or the encoder's own where that is smaller.
    img_size: int | None = None
    # Pixels that the shorter side gets first (bicubic); None: 256 with 224 pixels, else the side.
    resize: int | None = None

    def __post_init__(self) -> None:
        _check_votes(self.ks, self.temperature)
        if any(n < 1 for n in self.per_class):
            raise InputError(f"per_class: {self.per_class}; accepted: each 1 or more")
        if self.tries < 1:
            raise InputError(f"tries: {self.tries}; accepted: 1 or more")


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
    _check_votes(ks, temperature)
    width = check_labelled(train=train, test=test)
    dims = (width,) if nesting_dims is None else tuple(nesting_dims)
    if not dims or not all(0 < m <= width for m in dims):
        raise InputError(f"nesting_dims: {dims}; accepted: each from 1 to the width {width}")
    matched = matched_classes(train, test)
    labels = matched.test
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
    ks = tuple(dict.fromkeys(ks))
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for votes in knn_votes(memory, class_of, len(classes), queries, ks, temperature):
        for k in ks:
            predictions[k].append(classes[votes[k].argmax(1)])
    return {k: torch.cat(parts) for k, parts in predictions.items()}


def knn_votes(
    memory: Tensor,
    labels: Tensor,
    n_classes: int,
    queries: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> Iterator[dict[int, Tensor]]:
    """Votes of the nearest neighbours, a block of queries at a time.

    Args:
        memory: [n, d].
        labels: int64 [n], from 0 to n_classes - 1.
        n_classes: of the labels.
        queries: [t, d], on the memory's device.
        ks: numbers of neighbours; a k above n uses all n.
        temperature: T.

    Yields:
        for the next b queries: k -> float64 [b, n_classes], the sum of exp((s_i - s_1) / T) over
        the neighbours i of a class, s_1 being the largest similarity. DINO's softmax over the
        largest k differs by a factor, the same for all classes and all k of a query.

    Example:
        >>> (votes,) = knn_votes(torch.eye(2), torch.tensor([0, 1]), 2, torch.eye(2), (1,), 0.07)
        >>> votes[1].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for similarities, _ in CosineMemory(memory).compared(queries):
        similarity, nearest = similarities.topk(min(max(ks), len(memory)))
        # Relative to the most similar, so that no temperature overflows; in float64, so that the
        # votes of neighbours that are nearly as similar still break ties.
        weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
        voted = labels[nearest]
        yield {
            k: weights.new_zeros(len(weights), n_classes).scatter_add_(
                1, voted[:, :k], weights[:, :k]
            )
            for k in ks
        }


def nearest_neighbours(
    train: Embeddings,
    test: Embeddings,
    settings: KnnSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
) -> Result:
    """Top-1 and top-5 accuracy of weighted kNN, also with few train images per class.

    Few-shot as DINOv2 has it: a try keeps n images of each class (see `few_of_each`); of the ks
    those up to n are used, and n itself. A class that has fewer images keeps all of them.

    Args:
        train: labelled features [n, d].
        test: labelled features [t, d].
        settings: None takes the protocol's.
        dims: widths m that features are cut to, before they are normalised; None means the full
            width only.

    Returns:
        figures "k=10" (top-1), "k=10 top-5", ..., "best k" (the largest top-1 of the ks, as DINOv2
        reports it), "5 per class, k=5", ..., in per cent; those of several tries are means, with
        standard errors. A tie for the best class goes to the first one; ties
        of the top 5 count as wrong (see `among_best`).

    Raises:
        InputError: see `knn`.

    Example:
        >>> x = Embeddings(["a", "b"], torch.eye(2), torch.tensor([0, 1]))
        >>> nearest_neighbours(x, x, KnnSettings(ks=(1,))).figures
        {2: {'k=1': 100.0, 'k=1 top-5': 100.0, 'best k': 100.0}}
    """
    settings = settings or KnnSettings()
    chosen = check_dims(dims, check_labelled(train=train, test=test))
    matched = matched_classes(train, test)
    device = train.features.device
    classes, labels = matched.train.to(device).unique(return_inverse=True)
    truth = torch.searchsorted(classes, matched.test.to(device))
    counts = labels.bincount()
    tries = {
        n: [few_of_each(labels.cpu(), n, seed).to(device) for seed in range(settings.tries)]
        for n in dict.fromkeys(settings.per_class)
    }
    result = Result(
        "knn",
        {},
        settings,
        {"train": described(train), "test": described(test)},
        details={
            "answers that the top-5 accuracy accepts": best_of(len(classes)),
            "intervals": {},
            "classes with fewer images, which keep all": {
                str(n): int((counts < n).sum()) for n in tries
            },
            "ks above the number of train images": [k for k in settings.ks if k > len(train)],
            "classes without test images": [spell(name) for name in matched.untested],
            "remarks": matched.remarks,
        },
    )
    for m in chosen:
        x, y = train.features[:, :m], test.features[:, :m]
        correct = _correct(x, labels, y, truth, settings.ks, settings.temperature)
        best = max((f"k={k}" for k in settings.ks), key=lambda name: int(correct[name].sum()))
        correct["best k"] = correct[best]
        for n, rows in tries.items():
            ks = (*(k for k in dict.fromkeys(settings.ks) if k < n), n)
            runs = [_correct(x[i], labels[i], y, truth, ks, settings.temperature) for i in rows]
            for name in runs[0]:
                correct[f"{n} per class, {name}"] = torch.cat([run[name] for run in runs])
        result.figures[m], result.errors[m], intervals = accuracies(correct)
        result.details["intervals"][str(m)] = intervals
    return result


def few_of_each(labels: Tensor, n: int, seed: int) -> Tensor:
    """Rows of the images that a few-shot try keeps: n of each class.

    They are those that DINOv2 and Franca draw: with `torch.manual_seed(seed)`, the first n of one
    `torch.randperm` per class, classes ascending. They depend on the order of the images.

    Args:
        labels: int64 [images].
        n: images per class; a class that has fewer keeps all.
        seed: the number of the try.

    Returns:
        int64, a class after the other.

    Example:
        >>> few_of_each(torch.tensor([1, 0, 1]), 1, seed=0).tolist()[0]  # the one of class 0
        1
    """
    # The CPU's own generator, of which this one is a copy, stays as it was.
    generator = torch.Generator("cpu").manual_seed(seed)
    counts = labels.unique(return_counts=True)[1].tolist()
    kept = [
        rows[torch.randperm(len(rows), generator=generator, device="cpu")[:n]]
        for rows in labels.argsort(stable=True).split(counts)
    ]
    return torch.cat(kept)


@torch.no_grad()
def _correct(
    memory: Tensor,
    labels: Tensor,
    queries: Tensor,
    truth: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> dict[str, Tensor]:
    """Name of a figure -> bool [1, t], whether the class of each test image was found."""
    n_classes, ks = int(labels.max()) + 1, tuple(dict.fromkeys(ks))
    found: dict[str, list[Tensor]] = {}
    begin = 0
    for votes in knn_votes(memory, labels, n_classes, queries, ks, temperature):
        end = begin + len(votes[ks[0]])
        for k in ks:
            right = votes[k].argmax(1) == truth[begin:end]
            best = among_best(votes[k], truth[begin:end], best_of(n_classes))
            found.setdefault(f"k={k}", []).append(right)
            found.setdefault(f"k={k} top-5", []).append(best)
        begin = end
    return {name: torch.cat(parts)[None] for name, parts in found.items()}


def _check_votes(ks: Sequence[int], temperature: float) -> None:
    if not ks or min(ks) < 1:
        raise InputError(f"ks: {tuple(ks)}; accepted: numbers of neighbours, each 1 or more")
    if not temperature > 0:
        raise InputError(f"temperature: {temperature}; accepted: a positive number")


def _run(
    encoder: Encoder,
    sources: Mapping[str, Sources],
    settings: KnnSettings,
    dims: Sequence[int] | None,
    reading: Reading,
) -> Result:
    check_sources(sources["train"], sources["test"])
    parts = embed_roles(encoder, sources, settings.img_size, settings.resize, reading)
    parts = beside_encoder(encoder, parts)
    return nearest_neighbours(parts["train"], parts["test"], settings, dims=dims)


PROTOCOL = Protocol(
    "knn",
    "weighted k-nearest-neighbour accuracy of the CLS features",
    KnnSettings,
    (
        Role(
            "train",
            "labelled images: a folder of class folders, or shards with .cls members",
            opens=open_source,
        ),
        Role(
            "test",
            "the same; its classes are matched with those of train by name",
            opens=open_source,
        ),
    ),
    _run,
)
