from __future__ import annotations

import json
import math
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.image.logistic_regression import (
    Fits,
    LogisticRegressionSettings,
    candidate_cs,
    fit_classifier,
    held_out_rows,
    logistic_regression,
)
from franca_fast.models import build_backbone
from python_tests.evaluation.golden import arrays, values

QUICK = LogisticRegressionSettings(lowest_exponent=-2, highest_exponent=2, n_cs=3, tol=1e-9)


def embeddings(features: Tensor, labels: Tensor) -> Embeddings:
    return Embeddings([str(i) for i in range(len(features))], features, labels)


def golden_set(role: str) -> Embeddings:
    return embeddings(arrays()[f"logreg.{role}_features"], arrays()[f"logreg.{role}_labels"])


def fitted(c: float, max_iter: int = 1000, tol: float = 1e-12) -> tuple[Any, Fits]:
    train, fits = golden_set("train"), Fits()
    assert train.labels is not None
    x, y = train.features.double().numpy(), train.labels.numpy()
    return fit_classifier(x, y, c, max_iter, tol, fits), fits


def test_the_values_of_c_are_francas() -> None:
    assert candidate_cs(LogisticRegressionSettings()) == values()["logreg"]["sweep"]["C"]


@pytest.mark.parametrize("number", [16, 24, 32])
def test_a_fit_equals_francas(number: int) -> None:
    golden = arrays()
    model, fits = fitted(values()["logreg"][f"c{number}"]["C"])
    probabilities = model.predict_proba(golden["logreg.test_features"].double().numpy())
    assert np.abs(probabilities - golden[f"logreg.c{number}.probas"].numpy()).max() < 1e-5
    assert np.abs(model.coef_ - golden[f"logreg.c{number}.coef"].numpy()).max() < 1e-4
    assert np.abs(model.intercept_ - golden[f"logreg.c{number}.intercept"].numpy()).max() < 1e-4
    assert (fits.fits, fits.not_converged) == (1, 0)


def test_a_fit_is_where_the_gradient_vanishes() -> None:
    """Of C * sum of cross-entropies + half the squared weights, written out with autograd."""
    c = 0.3
    model, _ = fitted(c)
    train = golden_set("train")
    weight, bias = (
        torch.tensor(part, requires_grad=True) for part in (model.coef_, model.intercept_)
    )
    logits = train.features.double() @ weight.T + bias
    loss = c * torch.nn.functional.cross_entropy(logits, train.labels, reduction="sum")
    (loss + weight.square().sum() / 2).backward()
    for part in (weight, bias):
        assert part.grad is not None and part.grad.abs().max() < 1e-3


def test_the_held_out_rows_are_francas() -> None:
    before = torch.get_rng_state()
    held, rest = held_out_rows(200, 0.1, 0)
    assert torch.equal(held, arrays()["logreg.split.validation_indices"])
    assert torch.equal(rest, arrays()["logreg.split.train_indices"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tenth_is_that_of_whole_numbers() -> None:
    n = np.arange(10, 2_000_000)
    assert ((n * 0.1).astype(np.int64) == n // 10).all()


def test_the_whole_sweep_equals_francas() -> None:
    golden = values()["logreg"]["sweep"]
    result = logistic_regression(golden_set("train"), golden_set("test"))
    details = result.details["24"]
    shares = details["accuracy on the images that C was chosen on"]
    assert shares == pytest.approx([100 * v for v in golden["validation_top1"]], abs=1e-5)
    assert details["C"] == golden["best_C"]  # the first of many that are as good
    assert result.figures[24]["top-1"] == pytest.approx(100 * golden["refit_test_top1"], abs=1e-5)
    assert (details["fits"], details["fits that did not converge"]) == (46, 0)
    assert result.details["images that C was chosen on"] == 20
    json.dumps(result.as_dict())


def test_mean_per_class_and_top_5_equal_plain_loops() -> None:
    train, test = golden_set("train"), golden_set("test")
    assert train.labels is not None and test.labels is not None
    # Seven classes, so that five answers are not all there are.
    classes = (train.features[:, 0] > 0).long() * 5 + train.labels
    own = (test.features[:, 0] > 0).long() * 5 + test.labels
    settings = LogisticRegressionSettings(0, 0, n_cs=1)
    result = logistic_regression(
        embeddings(train.features, classes), embeddings(test.features, own), settings
    )
    model = fit_classifier(
        train.features.double().numpy(), classes.numpy(), 1.0, 1000, 1e-12, Fits()
    )
    scores = model.decision_function(test.features.double().numpy())
    rates = []
    for label in own.unique().tolist():
        rows = [i for i in range(len(own)) if own[i] == label]
        rates.append(sum(int(scores[i].argmax()) == label for i in rows) / len(rows))
    best = [sum(scores[i] >= scores[i][own[i]]) <= 5 for i in range(len(own))]
    figures = result.figures[24]
    assert figures["mean per class"] == pytest.approx(100 * sum(rates) / len(rates))
    assert figures["top-5"] == pytest.approx(100 * sum(best) / len(best))
    assert figures["top-5"] < 100 and figures["mean per class"] != figures["top-1"]
    low, high = result.details["24"]["intervals"]["top-1"]
    assert low < figures["top-1"] < high


def test_a_validation_set_chooses_c_and_is_learned_from() -> None:
    train, test = golden_set("train"), golden_set("test")
    assert train.labels is not None
    half = torch.arange(200) % 2 == 0
    learn = embeddings(train.features[half], train.labels[half])
    validation = embeddings(train.features[~half], train.labels[~half])
    result = logistic_regression(learn, test, QUICK, validation=validation)
    shares = []
    for c in candidate_cs(QUICK):
        model = fit_classifier(
            learn.features.double().numpy(), learn.labels.numpy(), c, 1000, 1e-9, Fits()
        )
        right = model.predict(validation.features.double().numpy()) == validation.labels.numpy()
        shares.append(100 * right.mean())
    details = result.details["24"]
    assert details["accuracy on the images that C was chosen on"] == pytest.approx(shares)
    c = candidate_cs(QUICK)[int(np.argmax(shares))]
    refit = fit_classifier(
        np.concatenate([learn.features.double().numpy(), validation.features.double().numpy()]),
        np.concatenate([learn.labels.numpy(), validation.labels.numpy()]),
        *(c, 1000, 1e-9, Fits()),
    )
    right = refit.predict(test.features.double().numpy()) == test.labels.numpy()
    assert details["C"] == c
    assert result.figures[24]["top-1"] == pytest.approx(100 * right.mean())
    assert result.data["validation"]["images"] == 100


def test_fits_that_do_not_converge_are_counted_and_nothing_is_spilled() -> None:
    settings = LogisticRegressionSettings(0, 4, n_cs=3, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = logistic_regression(golden_set("train"), golden_set("test"), settings)
    details = result.details["24"]
    assert (details["fits"], details["fits that did not converge"]) == (4, 4)


def test_other_warnings_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression.fit

    def fit_and_warn(self: Any, *args: Any) -> Any:
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
        return fit(self, *args)

    monkeypatch.setattr(LogisticRegression, "fit", fit_and_warn)
    with pytest.warns(RuntimeWarning, match="something else"):
        _, fits = fitted(1.0)
    assert fits.not_converged == 0


def test_two_classes_have_two_scores() -> None:
    train = golden_set("train")
    two = embeddings(train.features, (train.features[:, 0] > 0).long() + 3)
    figures = logistic_regression(two, two, QUICK).figures[24]
    assert figures["top-1"] > 90 and figures["top-5"] == 100.0


def test_names_of_classes_change_nothing() -> None:
    train, test = golden_set("train"), golden_set("test")
    assert train.labels is not None and test.labels is not None
    settings = LogisticRegressionSettings(-1, 1, n_cs=3)
    expected = logistic_regression(train, test, settings, dims=(8, 24)).figures
    new = torch.tensor([3, 0, 4, 1, 2])
    changed = [embeddings(p.features, new[p.labels]) for p in (train, test)]
    found = logistic_regression(*changed, settings, dims=(8, 24)).figures
    for m in (8, 24):
        assert found[m] == pytest.approx(expected[m])


def test_a_class_that_the_fitted_rows_lack_is_wrong_and_no_error() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    held, _ = held_out_rows(20, 0.1, 0)
    labels = torch.arange(20) % 2
    labels[held[0]] = 2  # the only image of its class chooses C, and is learned from afterwards
    data = embeddings(x, labels)
    result = logistic_regression(data, data, LogisticRegressionSettings(4, 5, n_cs=2))
    assert max(result.details["4"]["accuracy on the images that C was chosen on"]) <= 50
    assert result.figures[4]["top-1"] > 50


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda d: d.update(train=embeddings(torch.ones(9, 24), torch.arange(9) % 5)),
            "train: 9 images, of which 0.1 are 0",
        ),
        (lambda d: d["train"].labels.zero_(), "test: images of"),
        (lambda d: [d[role].labels.zero_() for role in d], "train: images of one class"),
        (lambda d: d["test"].labels.fill_(-1), "test: images without a label"),
        (lambda d: d["train"].features.fill_(math.inf), "train: features that are not"),
    ],
)
def test_wrong_input_is_named(change: Any, complaint: str) -> None:
    data = {
        role: embeddings(golden_set(role).features.clone(), golden_set(role).labels.clone())
        for role in ("train", "test")
    }
    change(data)
    with pytest.raises(InputError, match=complaint):
        logistic_regression(data["train"], data["test"], QUICK)


def test_classes_of_the_validation_set_are_those_of_train() -> None:
    validation = embeddings(golden_set("test").features, torch.full((60,), 9))
    with pytest.raises(InputError, match="validation: images of '9', which train lacks"):
        logistic_regression(golden_set("train"), golden_set("test"), QUICK, validation=validation)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lowest_exponent": 6.0}, "lowest_exponent"),
        ({"lowest_exponent": -50.0}, "lowest_exponent"),  # C would be 0
        ({"highest_exponent": 40.0}, "lowest_exponent, highest_exponent"),
        ({"n_cs": 0}, "n_cs"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": 0.0}, "tol"),
        ({"tol": float("inf")}, "tol"),
        ({"validation_share": 1.0}, "validation_share"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        LogisticRegressionSettings(**settings)


def test_without_scikit_learn_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r"logistic regression needs scikit-learn.*\[eval\]"):
        logistic_regression(golden_set("train"), golden_set("test"), QUICK)


def test_the_protocol_runs_on_an_encoder() -> None:
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
    data = dict.fromkeys(("train", "validation", "test"), "FashionMNIST:split=TEST")
    settings = {"lowest_exponent": "5", "n_cs": "1", "max_iter": "50"}
    result = evaluate("logistic-regression", model, data, settings, dims=(16,))
    assert list(result.figures[16]) == ["top-1", "top-5", "mean per class"]
    assert result.figures[16]["top-1"] > 20  # of ten classes, by features of nothing learned
    assert (result.data["train"]["img_size"], result.data["train"]["resize"]) == (28, 28)
