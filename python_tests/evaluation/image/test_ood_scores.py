from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.image import ood_scores
from franca_fast.evaluation.image.ood_figures import detection_figures
from franca_fast.evaluation.image.ood_scores import (
    LinearClassifier,
    Mahalanobis,
    NearestDistance,
    VirtualLogit,
    classifier_origin,
)
from python_tests.evaluation.golden import arrays, values

PARTS = ("id", "near", "far")


def known() -> Tensor:
    return arrays()["ood.train_features"]


def labels() -> Tensor:
    return arrays()["ood.train_labels"]


def classifier() -> LinearClassifier:
    return LinearClassifier(arrays()["ood.weight"], arrays()["ood.bias"])


def vim(dim: int) -> VirtualLogit:
    """With OpenOOD's origin: see `test_the_origin_has_logits_of_zero`."""
    return VirtualLogit(known(), classifier(), dim, arrays()["ood.vim.origin"])


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "msp": lambda x: classifier().largest_probability(x),
    "knn5": lambda x: NearestDistance(known(), (5, 50))(x)[5],
    "knn50": lambda x: NearestDistance(known(), (5, 50))(x)[50],
    "mds": lambda x: Mahalanobis(known(), labels())(x),
    "vim8": lambda x: vim(8)(x),
    "vim16": lambda x: vim(16)(x),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_and_figures_equal_openoods(name: str) -> None:
    golden = arrays()
    ours = {part: SCORES[name](golden[f"ood.{part}_features"]) for part in PARTS}
    for part, scores in ours.items():
        theirs = golden[f"ood.{name}.{part}"].double()
        size = theirs.abs() if name == "mds" else 1.0  # these are of the order of 50
        assert ((scores - theirs).abs() / size).max() < 1e-5
    for part in ("near", "far"):
        found = detection_figures(ours["id"].numpy(), ours[part].numpy())
        expected = values()["ood"][name][part]
        for figure, value in (("AUROC", "auroc"), ("FPR@95", "fpr95")):
            assert found[figure] / 100 == pytest.approx(expected[value], abs=1e-4)
        for figure, value in (("AUPR-out", "aupr_out"), ("AUPR-in", "aupr_in")):
            assert found[figure] / 100 == pytest.approx(expected[value], abs=1e-4)


def test_what_is_fitted_equals_openoods() -> None:
    golden = arrays()
    mahalanobis = Mahalanobis(known(), labels())
    assert torch.allclose(mahalanobis.means.float(), golden["ood.mds.class_mean"], atol=1e-6)
    precision = golden["ood.mds.precision"].double()
    assert (mahalanobis.precision - precision).abs().max() < 1e-5 * precision.abs().max()
    assert mahalanobis.rank == 32
    for dim in (8, 16):
        assert vim(dim).alpha == pytest.approx(values()["ood"][f"vim{dim}"]["alpha"], rel=1e-5)
    predicted = classifier().predicted(golden["ood.id_features"])
    accuracy = (predicted == golden["ood.id_labels"]).double().mean().item()
    assert accuracy == pytest.approx(values()["ood"]["msp"]["near"]["id_accuracy"])


def test_the_origin_has_logits_of_zero() -> None:
    """OpenOOD inverts a singular value that is rounding, and its origin has not.

    The rows of this W, of a softmax regression, add up to zero but for rounding.
    """
    linear = classifier()
    values_of_w = torch.linalg.svdvals(linear.weight)
    assert values_of_w[-1] < 1e-6 * values_of_w[0]
    ours, theirs = classifier_origin(linear), arrays()["ood.vim.origin"].double()
    logits = [(linear.weight @ u + linear.bias).abs().max() for u in (ours, theirs)]
    assert logits[0] < 1e-6 and logits[1] > 1e-3
    # The shortest such vector: within the space of the rows that are no rounding.
    rows = torch.linalg.svd(linear.weight, full_matrices=False)[2][:-1]
    assert (ours - rows.T @ (rows @ ours)).abs().max() < 1e-12


def test_the_origin_of_a_matrix_of_full_rank_is_openoods() -> None:
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(5, 12)), generator.normal(size=5)
    ours = classifier_origin(LinearClassifier(torch.from_numpy(weight), torch.from_numpy(bias)))
    assert torch.allclose(ours, torch.from_numpy(-np.linalg.pinv(weight) @ bias), atol=1e-12)


def test_distances_equal_plain_loops() -> None:
    x, queries = known()[:30, :5], arrays()["ood.near_features"][:8, :5]
    found = NearestDistance(x, (1, 7, 99))(queries)
    for row, query in enumerate(queries.tolist()):
        unit = [v / math.hypot(*query) for v in query]
        distances = sorted(
            sum((a - b / math.hypot(*other)) ** 2 for a, b in zip(unit, other, strict=True))
            for other in x.tolist()
        )
        for k, at in ((1, 0), (7, 6), (99, 29)):  # of 30 images the 99th is the last
            assert found[k][row].item() == pytest.approx(-distances[at], abs=1e-6)


def test_equal_features_are_at_no_distance() -> None:
    scores = NearestDistance(known(), (1,))(known())[1]
    assert scores.max() <= 0 and scores.min() > -1e-6


def test_mahalanobis_equals_scipys_distance() -> None:
    from scipy.spatial.distance import mahalanobis

    x, y = known()[:, :6].double(), labels()
    means = torch.stack([x[y == c].mean(0) for c in range(6)])
    covariance = sum(torch.outer(row, row) for row in x - means[y]) / len(x)
    inverse = np.linalg.inv(covariance.numpy())
    queries = arrays()["ood.far_features"][:9, :6]
    for query, score in zip(queries.double(), Mahalanobis(known()[:, :6], y)(queries), strict=True):
        distances = [mahalanobis(query.numpy(), mean.numpy(), inverse) ** 2 for mean in means]
        assert score.item() == pytest.approx(-min(distances), rel=1e-9)


def test_directions_without_variance_count_for_nothing() -> None:
    x = known()[:, :4]
    wide = torch.cat([x, x[:, :1], torch.ones(len(x), 1)], 1)
    fitted = Mahalanobis(wide, labels())
    assert fitted.rank == 4
    queries = arrays()["ood.near_features"][:, :4]
    wide_queries = torch.cat([queries, queries[:, :1], torch.ones(50, 1)], 1)
    expected = Mahalanobis(x, labels())(queries)
    assert torch.allclose(fitted(wide_queries), expected, rtol=1e-6)


def test_vim_equals_its_equations() -> None:
    linear, dim = classifier(), 10
    x, queries = known().double().numpy(), arrays()["ood.near_features"][:9].double().numpy()
    weight, bias = linear.weight.numpy(), linear.bias.numpy()
    origin = classifier_origin(linear).numpy()
    moment = sum(np.outer(row, row) for row in x - origin) / len(x)
    eigenvalues, vectors = np.linalg.eig(moment)
    rest = vectors[:, np.argsort(-eigenvalues)[dim:]]
    norms = [np.linalg.norm(rest.T @ (row - origin)) for row in x]
    alpha = np.mean([(weight @ row + bias).max() for row in x]) / np.mean(norms)
    found = VirtualLogit(known(), linear, dim)(torch.from_numpy(queries))
    for query, score in zip(queries, found.tolist(), strict=True):
        energy = math.log(sum(math.exp(v) for v in weight @ query + bias))
        norm = np.linalg.norm(rest.T @ (query - origin))
        assert score == pytest.approx(energy - alpha * norm, rel=1e-9)


def fitted_scores(x: Tensor, y: Tensor, linear: LinearClassifier, queries: Tensor) -> list[Tensor]:
    return [
        *NearestDistance(x, (1, 20))(queries).values(),
        Mahalanobis(x, y)(queries),
        VirtualLogit(x, linear, 8)(queries),
        linear.largest_probability(queries),
    ]


def test_order_of_images_classes_and_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y, linear = known(), labels(), classifier()
    queries = torch.cat([arrays()[f"ood.{part}_features"] for part in PARTS])
    expected = fitted_scores(x, y, linear, queries)
    generator = torch.Generator().manual_seed(0)
    order, classes = torch.randperm(200, generator=generator), torch.tensor([4, 0, 5, 2, 1, 3])
    back = classes.argsort()
    permuted = LinearClassifier(linear.weight[back], linear.bias[back])
    changed = fitted_scores(x[order], classes[y[order]], permuted, queries)
    monkeypatch.setattr(ood_scores, "_NUMBERS_AT_ONCE", 32 * 7)
    blocks = fitted_scores(x, y, linear, queries)
    for scores in (changed, blocks):
        for ours, theirs in zip(scores, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("shapes", [((1, 4), 1), ((3, 4), 2), ((4,), 4)])
def test_a_classifier_that_does_not_fit_is_refused(shapes: tuple) -> None:
    with pytest.raises(InputError, match="classifier: weight"):
        LinearClassifier(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("dim", [-1, 32])
def test_a_principal_space_as_wide_as_the_features_is_refused(dim: int) -> None:
    with pytest.raises(InputError, match=f"vim_dim: {dim}; accepted: 0 to 31"):
        VirtualLogit(known(), classifier(), dim)


def test_a_principal_space_that_holds_everything_is_refused() -> None:
    flat = torch.cat([torch.eye(2), torch.zeros(2, 1)], 1)
    linear = LinearClassifier(torch.eye(2, 3), torch.zeros(2))
    with pytest.raises(InputError, match="vim_dim: 2, and no known image"):
        VirtualLogit(flat, linear, 2)


def _score_on_the_gpu() -> None:
    with torch.device("cuda"):
        x, linear = torch.randn(60, 16), LinearClassifier(torch.randn(3, 16), torch.randn(3))
        for scores in (*NearestDistance(x, (1, 99))(x).values(), linear.largest_probability(x)):
            assert (scores.device.type, scores.shape) == ("cuda", (60,))


def test_a_gpu_scores_without_a_wait(fake_gpu: Callable[..., Any]) -> None:
    assert fake_gpu(_score_on_the_gpu) == {}
