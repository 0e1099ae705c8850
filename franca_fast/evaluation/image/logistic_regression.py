"""Logistic regression on frozen features, its strength of regularisation chosen on held-out rows.

The protocol of DINOv2 and Franca, solved by scikit-learn (lbfgs, float64) where they have cuML.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from franca_fast.data import open_source
from franca_fast.errors import InputError
from franca_fast.evaluation.class_matching import check_sources
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.extras import need
from franca_fast.evaluation.image.accuracy import accuracies, among_best, best_of
from franca_fast.evaluation.image.embedded import described, embed_roles, protocol_size
from franca_fast.evaluation.image.inputs import check_labelled, matched_classes
from franca_fast.evaluation.protocol import Protocol, Reading, Role, Sources, check_dims
from franca_fast.evaluation.result import Result
from franca_fast.spelling import spell

_WHOSE = "logistic regression"
_Rows = NDArray[np.float64]
_Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LogisticRegressionSettings:
    """Settings of logistic regression; the defaults are DINOv2's and Franca's.

    Raises:
        InputError: a value out of its range.
    """

    # C, the inverse of the L2 penalty's weight, goes through powers of ten from the lowest exponent
    # to the highest, evenly spaced; as in the originals the powers are float32 numbers.
    lowest_exponent: float = -6.0
    highest_exponent: float = 5.0
    n_cs: int = 45
    max_iter: int = 1000  # iterations of the solver at most
    tol: float = 1e-12  # the largest component of the gradient at which the solver stops
    # Without a validation set: the share of the train images on which C is chosen, and the seed.
    validation_share: float = 0.1
    seed: int = 0
    # Side of the images, pixels; None: 224, or the encoder's own where that is smaller.
    img_size: int | None = None
    # Pixels that the shorter side gets first (bicubic); None: the side.
    resize: int | None = None

    def __post_init__(self) -> None:
        if not -38 < self.lowest_exponent <= self.highest_exponent < 38:
            raise InputError(
                f"lowest_exponent, highest_exponent: {self.lowest_exponent}, "
                f"{self.highest_exponent}; accepted: ascending, above -38 and below 38"
            )
        for name, value in (("n_cs", self.n_cs), ("max_iter", self.max_iter)):
            if value < 1:
                raise InputError(f"{name}: {value}; accepted: 1 or more")
        if not 0 < self.tol < math.inf:
            raise InputError(f"tol: {self.tol}; accepted: a positive number")
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share: {self.validation_share}; accepted: from 0 to 1")


@dataclass
class Fits:
    """Counts of the solver's work.

    Attributes:
        fits: regressions that were fitted.
        not_converged: those that stopped before the gradient was as small as `tol` asks.
    """

    fits: int = 0
    not_converged: int = 0

    def count(self, converged: bool) -> None:
        """Counts a fit."""
        self.fits += 1
        self.not_converged += not converged


def candidate_cs(settings: LogisticRegressionSettings) -> list[float]:
    """The values of C that are tried: float32 powers of ten.

    Example:
        >>> candidate_cs(LogisticRegressionSettings(n_cs=3))
        [9.999999974752427e-07, 0.3162277638912201, 100000.0]
    """
    ends = (settings.lowest_exponent, settings.highest_exponent)
    exponents = torch.linspace(*ends, settings.n_cs, dtype=torch.float32, device="cpu")
    return (10**exponents).tolist()


def fit_classifier(
    features: _Rows, labels: _Labels, c: float, max_iter: int, tol: float, fits: Fits
) -> Any:
    """Fits a linear classifier: the mean cross-entropy with an L2 penalty, scikit-learn's weights.

    Features are taken as they are, neither normalised nor standardised; the bias has no penalty.
    With two classes it is one logistic function, as scikit-learn (and cuML) have it.

    Args:
        features: float64 [n, d].
        labels: int64 [n].
        c: C.
        max_iter: iterations at most.
        tol: see the settings.
        fits: counts it.

    Returns:
        scikit-learn's LogisticRegression; its `classes_` are the labels that occur.

    Raises:
        InputError: one class, or scikit-learn is not installed.

    Example:
        >>> x, y = np.array([[0.0], [1.0]]), np.array([3, 7])
        >>> fit_classifier(x, y, 1.0, 100, 1e-9, Fits()).predict(x).tolist()
        [3, 7]
    """
    linear_model = need("sklearn.linear_model", _WHOSE)
    not_converged = need("sklearn.exceptions", _WHOSE).ConvergenceWarning
    if len(np.unique(labels)) < 2:
        raise InputError("train: images of one class to fit; accepted: of two or more")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = linear_model.LogisticRegression(C=c, max_iter=max_iter, tol=tol)
        model.fit(features, labels)
    ours = [one for one in said if issubclass(one.category, not_converged)]
    for one in said:
        if one not in ours:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    fits.count(not ours)
    return model


def held_out_rows(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which rows C is chosen on, as the originals draw them.

    Args:
        n: of all rows.
        share: of them.
        seed: of `torch.manual_seed`.

    Returns:
        rows to choose on, the first int(n * share) of one `torch.randperm(n)`, and the others.

    Raises:
        InputError: too few rows for one to be held out, or none would be left.

    Example:
        >>> [len(rows) for rows in held_out_rows(25, 0.1, 0)]
        [2, 23]
    """
    held = int(n * share)
    if not 0 < held < n:
        raise InputError(
            f"train: {n} images, of which {share:g} are {held} to choose C on; accepted: enough "
            "for one and a rest, or a validation set"
        )
    # A generator of its own gives the numbers of `torch.manual_seed` and leaves the global one.
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return order[:held], order[held:]


def choose_c(
    train: tuple[_Rows, _Labels],
    validation: tuple[_Rows, _Labels],
    settings: LogisticRegressionSettings,
    fits: Fits,
) -> tuple[float, list[float]]:
    """The first C with the best top-1 accuracy on the validation rows.

    Returns:
        it, and the accuracy of each candidate, in per cent.
    """
    cs = candidate_cs(settings)
    shares = list[float]()
    for c in cs:
        model = fit_classifier(*train, c, settings.max_iter, settings.tol, fits)
        shares.append(100.0 * float((model.predict(validation[0]) == validation[1]).mean()))
    return cs[int(np.argmax(shares))], shares


def logistic_regression(
    train: Embeddings,
    test: Embeddings,
    settings: LogisticRegressionSettings | None = None,
    *,
    validation: Embeddings | None = None,
    dims: Sequence[int] | None = None,
) -> Result:
    """Accuracy of a logistic regression on frozen features.

    C is chosen on a tenth of the train images, or on a validation set; the classifier is then
    fitted to all of them (train and validation, as DINOv2 does), and tested.

    Args:
        train: labelled features [n, d].
        test: labelled features [t, d].
        settings: None takes the protocol's.
        validation: labelled features to choose C on; None holds out a part of train.
        dims: widths m that features are cut to; None means the full width only.

    Returns:
        figures "top-1", "top-5" (ties count as wrong, see `among_best`) and "mean per class" (top-1
        of each class that has test images, averaged), in per cent; in the details, C and its
        accuracies, and how many fits did not converge.

    Raises:
        InputError: what `knn` refuses; one class; or scikit-learn is not installed.

    Example:
        >>> x = torch.arange(20.0)[:, None]
        >>> data = Embeddings([str(i) for i in range(20)], x, (x[:, 0] > 9).long())
        >>> logistic_regression(data, data, LogisticRegressionSettings(n_cs=2)).figures[1]["top-1"]
        100.0
    """
    settings = settings or LogisticRegressionSettings()
    need("sklearn.linear_model", _WHOSE)
    parts = {"train": train, **({"validation": validation} if validation else {}), "test": test}
    chosen = check_dims(dims, check_labelled(**parts))
    matched = matched_classes(train, test)
    labels, truth = matched.train, matched.test.numpy()
    if validation is None:
        held, rest = held_out_rows(len(train), settings.validation_share, settings.seed)
        features, refit = train.features, torch.arange(len(train), device="cpu")
    else:
        features = torch.cat([train.features, validation.features])
        labels = torch.cat(
            [labels, matched_classes(train, validation, roles=("train", "validation")).test]
        )
        rest, held = torch.arange(len(features), device="cpu").split([len(train), len(validation)])
        refit = torch.arange(len(features), device="cpu")
    n_classes = len(labels.unique())
    result = Result(
        "logistic-regression",
        {},
        settings,
        {role: described(part) for role, part in parts.items()},
        details={
            "answers that the top-5 accuracy accepts": best_of(n_classes),
            "images that C was chosen on": len(held),
            "candidates of C": candidate_cs(settings),
            "classes without test images": [spell(name) for name in matched.untested],
            "remarks": matched.remarks,
        },
    )
    for m in chosen:
        x, fits = features[:, :m].double().numpy(), Fits()
        (fitted, chosen_on, everything) = ((x[i], labels[i].numpy()) for i in (rest, held, refit))
        c, shares = choose_c(fitted, chosen_on, settings, fits)
        model = fit_classifier(*everything, c, settings.max_iter, settings.tol, fits)
        correct = _correct(model, test.features[:, :m].double().numpy(), truth)
        figures, _, intervals = accuracies({name: right[None] for name, right in correct.items()})
        figures["mean per class"] = _mean_per_class(correct["top-1"], matched.test)
        result.figures[m] = figures
        result.details[str(m)] = {
            "C": c,
            "accuracy on the images that C was chosen on": shares,
            "fits": fits.fits,
            "fits that did not converge": fits.not_converged,
            "intervals": intervals,
        }
    return result


def _correct(model: Any, features: _Rows, truth: _Labels) -> dict[str, Tensor]:
    """Name of a figure -> bool [t], whether the class of each test image was found."""
    scores = torch.from_numpy(model.decision_function(features))
    if scores.ndim == 1:  # two classes: the logit of the second one
        scores = torch.stack([-scores, scores], 1)
    # A class of the validation set alone is among the model's too; every test class is train's.
    columns = torch.from_numpy(np.searchsorted(model.classes_, truth))
    return {
        "top-1": torch.from_numpy(model.predict(features) == truth),
        "top-5": among_best(scores, columns, best_of(scores.shape[1])),
    }


def _mean_per_class(right: Tensor, truth: Tensor) -> float:
    classes, which = truth.unique(return_inverse=True)
    found = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, which, right.double())
    return 100.0 * float((found / which.bincount()).mean())


def _run(
    encoder: Encoder,
    sources: Mapping[str, Sources],
    settings: LogisticRegressionSettings,
    dims: Sequence[int] | None,
    reading: Reading,
) -> Result:
    need("sklearn.linear_model", _WHOSE)  # before anything is read
    for role in sources.keys() - {"train"}:
        check_sources(sources["train"], sources[role], roles=("train", role))
    size = protocol_size(encoder, settings.img_size)
    resize = size if settings.resize is None else settings.resize
    parts = embed_roles(encoder, sources, size, resize, reading)
    return logistic_regression(
        parts["train"], parts["test"], settings, validation=parts.get("validation"), dims=dims
    )


PROTOCOL = Protocol(
    "logistic-regression",
    "accuracy of a logistic regression on CLS features",
    LogisticRegressionSettings,
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
        Role(
            "validation",
            "labelled images on which C is chosen (a tenth of train), then learned from too",
            required=False,
            opens=open_source,
        ),
    ),
    _run,
)
