"""Out-of-distribution detection: images of unknown classes told from those of the known ones.

After OpenOOD v1.5: scores of four methods on frozen features, and its figures for each.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from franca_fast.data import open_source
from franca_fast.errors import InputError
from franca_fast.evaluation.class_matching import check_sources
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.extras import need
from franca_fast.evaluation.image.embedded import described, embed_roles
from franca_fast.evaluation.image.inputs import (
    beside_encoder,
    check_features,
    check_labelled,
    matched_classes,
)
from franca_fast.evaluation.image.logistic_regression import Fits, fit_classifier
from franca_fast.evaluation.image.ood_figures import detection_figures
from franca_fast.evaluation.image.ood_scores import (
    LinearClassifier,
    Mahalanobis,
    NearestDistance,
    Score,
    VirtualLogit,
)
from franca_fast.evaluation.protocol import Protocol, Reading, Role, Source, Sources, check_dims
from franca_fast.evaluation.result import Result
from franca_fast.spelling import spell

# OpenOOD's sets for ImageNet-1k, by the letters of their names.
GROUPS = {
    "near": {"ssbhard", "ninco"},
    "far": {"inaturalist", "textures", "texture", "openimageo"},
}
_WIDE = 1500  # from this width on ViM's principal space has 1000 dimensions, below it 256
_WHOSE = "the detection of unknown images"


@dataclass(frozen=True)
class OodSettings:
    """Settings of out-of-distribution detection; the defaults are OpenOOD v1.5's for ImageNet.

    Raises:
        InputError: a value out of its range.
    """

    # K of the nearest-neighbour score; several give a figure each (OpenOOD sweeps 50 to 1000). A K
    # above the number of train images uses all.
    ks: tuple[int, ...] = (50,)
    # Dimensions of ViM's principal space; None: 256 for widths below 1500, else 1000; where that is
    # no less than the width, half the width.
    vim_dim: int | None = None
    # The linear classifier of ViM and MSP: logistic regression on the train features as they are.
    classifier_c: float = 1.0
    classifier_max_iter: int = 1000
    classifier_tol: float = 1e-6
    # Side of the images, pixels; None: 224, or the encoder's own where that is smaller.
    img_size: int | None = None
    # Pixels that the shorter side gets first (bicubic, where OpenOOD is bilinear); None: 256 with
    # 224 pixels, else the side.
    resize: int | None = None

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise InputError(f"ks: {self.ks}; accepted: numbers of neighbours, each 1 or more")
        if self.vim_dim is not None and self.vim_dim < 0:
            raise InputError(f"vim_dim: {self.vim_dim}; accepted: 0 or more, or none")
        for name, value in (("c", self.classifier_c), ("tol", self.classifier_tol)):
            if not 0 < value < math.inf:
                raise InputError(f"classifier_{name}: {value}; accepted: a positive number")
        if self.classifier_max_iter < 1:
            raise InputError(
                f"classifier_max_iter: {self.classifier_max_iter}; accepted: 1 or more"
            )


def ood(
    train: Embeddings,
    test: Embeddings,
    unknown: Mapping[str, Embeddings],
    settings: OodSettings | None = None,
    *,
    classifier: tuple[Tensor, Tensor] | None = None,
    dims: Sequence[int] | None = None,
) -> Result:
    """How well images of unknown classes are told from test images of the classes of train.

    Scores: "kNN" (minus the squared distance to the K-th nearest train image), "Mahalanobis",
    "ViM", and "MSP" (the largest softmax probability of a linear classifier); see `ood_scores`.

    Args:
        train: labelled features of known classes [n, d].
        test: features of the same classes; with labels, the classifier's accuracy is a figure too.
        unknown: name of a set -> features of images of other classes. OpenOOD's sets for ImageNet
            are known by their names, and averaged in two groups, near and far.
        settings: None takes the protocol's.
        classifier: weight [C, d] and bias [C] of the classes of train in their order, for the full
            width; None, and narrower widths, fit a logistic regression to train.
        dims: widths m that features are cut to; None means the full width only.

    Returns:
        figures "<set>: <score> AUROC", "... FPR@95", "... AUPR-out" and "... AUPR-in" in per cent
        (see `detection_figures`); "mean of near: ..." and "mean of far: ..." where sets of these
        groups are there; and "accuracy on known classes".

    Raises:
        InputError: sets that cannot be compared, a train image without a label, no unknown set, or
            scikit-learn is not installed.

    Example:
        >>> x = torch.cat([torch.eye(4), 1.1 * torch.eye(4)])
        >>> known = Embeddings(list("abcdefgh"), x, torch.arange(8) % 4)
        >>> others = Embeddings(["i"], -torch.ones(1, 4))
        >>> ood(known, known, {"others": others}, OodSettings(ks=(1,))).figures[4][
        ...     "others: kNN K=1 AUROC"
        ... ]
        100.0
    """
    settings = settings or OodSettings()
    need("sklearn.metrics", _WHOSE)
    if not unknown:
        raise InputError("ood: no set of unknown images; accepted: one or more")
    check_labelled(train=train)
    width = check_features(train=train, test=test, **unknown)
    chosen = check_dims(dims, width)
    device = train.features.device
    labels, truth = (None if part is None else part.to(device) for part in _classes(train, test))
    assert labels is not None
    n_classes = int(labels.max()) + 1
    if classifier is not None and classifier[0].shape != (n_classes, width):
        raise InputError(
            f"classifier: weight {tuple(classifier[0].shape)}; accepted: [{n_classes}, {width}]"
        )
    result = Result(
        "ood",
        {},
        settings,
        {role: described(part) for role, part in {"train": train, "test": test, **unknown}.items()},
        details={
            "groups": _groups(unknown),
            "K that is above the number of train images": [
                k for k in settings.ks if k > len(train)
            ],
        },
    )
    for m in chosen:
        known, tested = train.features[:, :m], test.features[:, :m]
        given = classifier if m == width else None
        linear, facts = _classifier(known, labels, given, settings)
        scores, more = _scores(known, labels, linear, settings)
        figures = {}
        if truth is not None:
            right = linear.predicted(tested) == truth
            figures["accuracy on known classes"] = 100.0 * right.double().mean().item()
        of_test = scores.of(tested)
        for name, part in unknown.items():
            for score, values in scores.of(part.features[:, :m]).items():
                found = detection_figures(of_test[score].numpy(), values.numpy())
                figures |= {f"{name}: {score} {figure}": v for figure, v in found.items()}
        result.figures[m] = figures | _group_means(figures, _groups(unknown))
        result.details[str(m)] = facts | more
    return result


def _classes(train: Embeddings, test: Embeddings) -> tuple[Tensor, Tensor | None]:
    """Classes of both as 0, 1, ...; None where not all test images have a label."""
    assert train.labels is not None
    if test.labels is None or bool((test.labels < 0).any()):
        return train.labels.unique(return_inverse=True)[1], None
    matched = matched_classes(train, test)
    occurring, labels = matched.train.unique(return_inverse=True)
    return labels, torch.searchsorted(occurring, matched.test)


def _classifier(
    known: Tensor, labels: Tensor, given: tuple[Tensor, Tensor] | None, settings: OodSettings
) -> tuple[LinearClassifier, dict[str, Any]]:
    """The linear classifier, and what a result says of it."""
    if given is not None:
        weight, bias = (part.to(known.device) for part in given)
        return LinearClassifier(weight, bias), {"classifier": "given"}
    fits = Fits()
    model = fit_classifier(
        known.double().cpu().numpy(),
        labels.cpu().numpy(),
        settings.classifier_c,
        settings.classifier_max_iter,
        settings.classifier_tol,
        fits,
    )
    weight, bias = (
        torch.from_numpy(part).to(known.device) for part in (model.coef_, model.intercept_)
    )
    if len(weight) == 1:  # two classes: one logit, that of the second less that of the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    facts = {
        "classifier": "logistic regression on train",
        "fits of it that did not converge": fits.not_converged,
    }
    return LinearClassifier(weight, bias), facts


@dataclass(frozen=True)
class _Scores:
    """The four methods, ready to score features."""

    nearest: NearestDistance
    others: Mapping[str, Score]

    def of(self, features: Tensor) -> dict[str, Tensor]:
        """Name of the score -> float64 [t], on the CPU."""
        found = {f"kNN K={k}": scores for k, scores in self.nearest(features).items()}
        found |= {name: score(features) for name, score in self.others.items()}
        return {name: scores.cpu() for name, scores in found.items()}


def _scores(
    known: Tensor, labels: Tensor, linear: LinearClassifier, settings: OodSettings
) -> tuple[_Scores, dict[str, Any]]:
    """The methods fitted to known images, and what a result says of them."""
    mahalanobis = Mahalanobis(known, labels)
    dim = vim_dim(known.shape[1], settings.vim_dim)
    vim = VirtualLogit(known, linear, dim)
    others: dict[str, Score] = {
        "Mahalanobis": mahalanobis,
        "ViM": vim,
        "MSP": linear.largest_probability,
    }
    facts = {
        "rank of the covariance of Mahalanobis": mahalanobis.rank,
        "dimensions of ViM's principal space": dim,
        "alpha of ViM": vim.alpha,
    }
    return _Scores(NearestDistance(known, settings.ks), others), facts


def vim_dim(width: int, asked: int | None = None) -> int:
    """Dimensions of ViM's principal space: as asked, or OpenOOD's.

    Where that is no less than the width, nothing would lie outside, and it is half the width.

    Example:
        >>> vim_dim(768), vim_dim(1536), vim_dim(192)
        (256, 1000, 96)
    """
    dim = asked
    if dim is None:
        dim = 256 if width < _WIDE else 1000
    return dim if dim < width else width // 2


def group_of(name: str) -> str | None:
    """Whether a set is one of OpenOOD's for ImageNet, and which of its two groups it is in.

    Example:
        >>> group_of("SSB-hard"), group_of("openimage_o"), group_of("holidays")
        ('near', 'far', None)
    """
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((group for group, names in GROUPS.items() if letters in names), None)


def _groups(unknown: Mapping[str, Embeddings]) -> dict[str, list[str]]:
    """Group -> names of the sets that are in it; groups without one are left out."""
    found = {group: [name for name in unknown if group_of(name) == group] for group in GROUPS}
    return {group: names for group, names in found.items() if names}


def _group_means(figures: Mapping[str, float], groups: Mapping[str, list[str]]) -> dict[str, float]:
    """Means of the figures of a group's sets, as OpenOOD averages them."""
    means = {}
    for group, names in groups.items():
        first = f"{names[0]}: "
        for kind in [name.removeprefix(first) for name in figures if name.startswith(first)]:
            means[f"mean of {group}: {kind}"] = fmean(figures[f"{name}: {kind}"] for name in names)
    return means


def set_name(source: Source) -> str:
    """What a set of unknown images is called: its list's or its folder's name.

    Example:
        >>> set_name("OpenOOD:root=/data:list=test_ninco.txt"), set_name("/data/textures/")
        ('ninco', 'textures')
        >>> set_name("shards/places-{000..003}.tar")
        'places-{000..003}'
    """
    text = os.fspath(source)
    listed = re.search(r":list=([^:]+)", text)
    name = PurePath(listed[1] if listed else os.path.abspath(text)).name
    name = re.sub(r"\.(txt|tar|tar\.gz|tgz)$", "", name)
    return spell(re.sub(r"^(test|val)_", "", name) if listed else name)


def _names(sources: Sources) -> list[str]:
    """Names of the sets; the path of one whose name another set has already."""
    names = list[str]()
    for source in sources:
        name = set_name(source)
        if name in ("train", "test", *names):
            name = spell(os.fspath(source))
        if name in ("train", "test", *names):
            raise InputError(f"ood: '{name}' twice; accepted: each set once")
        names.append(name)
    return names


def _run(
    encoder: Encoder,
    sources: Mapping[str, Sources],
    settings: OodSettings,
    dims: Sequence[int] | None,
    reading: Reading,
) -> Result:
    need("sklearn.metrics", _WHOSE)  # before anything is read
    names = _names(sources["ood"])
    read: dict[str, Sources] = {role: sources[role] for role in ("train", "test")}
    read |= {name: [one] for name, one in zip(names, sources["ood"], strict=True)}
    check_sources(read["train"], read["train"])  # that it has labels; those of test are no must
    parts = embed_roles(encoder, read, settings.img_size, settings.resize, reading)
    parts = beside_encoder(encoder, parts)
    unknown = {name: parts[name] for name in names}
    return ood(parts["train"], parts["test"], unknown, settings, dims=dims)


PROTOCOL = Protocol(
    "ood",
    "images of unknown classes told from known ones: kNN, Mahalanobis, ViM and MSP",
    OodSettings,
    (
        Role("train", "labelled images of the known classes", opens=open_source),
        Role("test", "other images of the same classes", opens=open_source),
        Role("ood", "images of other classes; each source is a set of its own", opens=open_source),
    ),
    _run,
)
