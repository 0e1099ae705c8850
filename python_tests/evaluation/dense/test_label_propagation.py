from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.label_propagation import (
    label_map,
    neighbourhood,
    propagate_labels,
)
from python_tests.evaluation.golden import arrays, values


def plain_propagation(
    target: Tensor, sources: Tensor, labels: Tensor, radius: int | None, top_k: int, t: float
) -> Tensor:
    """Position by position, in float64."""
    (height, width, _), n = target.shape, len(sources)
    result = torch.zeros(labels.shape[1], height, width, dtype=torch.float64)
    reach = max(height, width) if radius is None else radius
    for y in range(height):
        for x in range(width):
            near = [
                (float(target[y, x].double() @ sources[f, v, u].double()), labels[f, :, v, u])
                for f in range(n)
                for v in range(max(0, y - reach), min(height, y + reach + 1))
                for u in range(max(0, x - reach), min(width, x + reach + 1))
            ]
            last = sorted((cosine for cosine, _ in near), reverse=True)[:top_k][-1]
            kept = [(math.exp(c / t), label) for c, label in near if c >= last - 1e-9]
            total = sum(weight for weight, _ in kept)
            result[:, y, x] = sum(weight / total * label.double() for weight, label in kept)
    return result


def frames(n: int, height: int, width: int, d: int = 12, c: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + height)
    features = torch.randn(n, height, width, d, generator=generator)
    labels = torch.rand(n, c, height, width, generator=generator)
    return F.normalize(features, dim=-1), labels


def test_golden_neighbourhood() -> None:
    h, w = values()["video"]["settings"]["grid"]
    radius = values()["video"]["settings"]["radius"]
    found = neighbourhood(range(h), range(h), w, radius)
    assert torch.equal(found, arrays()["video.neighbourhood"].bool())


def test_golden_soft_labels_and_maps() -> None:
    settings = values()["video"]["settings"]
    h, w = settings["grid"]
    features = F.normalize(arrays()["video.features"], dim=-1).unflatten(1, (h, w))
    first = arrays()["video.first_seg"]
    soft = [first[0]]
    for t in range(1, settings["frames"]):
        used = [0, *range(max(1, t - settings["n_last_frames"]), t)]
        soft.append(
            propagate_labels(
                features[t],
                features[used],
                torch.stack([soft[i] for i in used]),
                radius=settings["radius"],
                top_k=settings["topk"],
                temperature=settings["temperature"],
            )
        )
        expected = arrays()["video.soft"][t - 1]
        torch.testing.assert_close(soft[t], expected, atol=1e-5, rtol=0)
        found = label_map(soft[t], settings["patch"])
        assert torch.equal(found, arrays()["video.label_map"][t - 1].long())


@pytest.mark.parametrize(
    ("height", "width", "n", "radius", "top_k"),
    [(4, 5, 2, 1, 3), (1, 6, 1, 2, 2), (5, 3, 3, None, 7), (3, 3, 1, 0, 5), (2, 2, 2, 9, 50)],
)
def test_equals_loops_in_float64(
    height: int, width: int, n: int, radius: int | None, top_k: int
) -> None:
    features, labels = frames(n + 1, height, width)
    given = {"radius": radius, "top_k": top_k, "temperature": 0.1}
    found = propagate_labels(features[0], features[1:], labels[1:], **given)
    expected = plain_propagation(features[0], features[1:], labels[1:], radius, top_k, 0.1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_equal_similarities_all_count() -> None:
    features = F.normalize(torch.ones(1, 3, 3, 4), dim=-1)
    labels = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = propagate_labels(features[0], features, labels, radius=None, top_k=2)
    torch.testing.assert_close(found, torch.full((1, 3, 3), 4.0))


@pytest.mark.parametrize("cosines_at_once", [1, 400, 10**9])
def test_blocks_change_nothing(cosines_at_once: int) -> None:
    features, labels = frames(4, 9, 7)
    given = {"radius": 2, "top_k": 5}
    whole = propagate_labels(features[0], features[1:], labels[1:], **given)
    found = propagate_labels(
        features[0], features[1:], labels[1:], **given, cosines_at_once=cosines_at_once
    )
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)


def test_a_block_bounds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = frames(3, 16, 10)
    largest = 0
    original = torch.einsum

    def measured(*args: object) -> Tensor:
        nonlocal largest
        result = original(*args)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch, "einsum", measured)
    propagate_labels(features[0], features[1:], labels[1:], radius=1, cosines_at_once=2000)
    # Two more rows are seen above and below a block of more than one row.
    assert 0 < largest <= 2 * 2000


def test_a_permutation_of_labels_changes_nothing() -> None:
    features, labels = frames(3, 4, 4)
    order = torch.tensor([2, 0, 1])
    found = propagate_labels(features[0], features[1:], labels[1:])
    other = propagate_labels(features[0], features[1:], labels[1:, order])
    torch.testing.assert_close(other, found[order])


def test_shapes_that_do_not_fit_are_refused() -> None:
    features, labels = frames(2, 3, 3)
    with pytest.raises(InputError, match=r"accepted: \[n, 3, 3, 12\] and \[n, labels, 3, 3\]"):
        propagate_labels(features[0], features[1:, :2], labels[1:])


def test_labels_are_stretched_and_missing_ones_never_win() -> None:
    soft = torch.zeros(4, 2, 2)
    soft[0] = 0.9  # the same everywhere: says nothing
    soft[1, 0, 0] = 0.1
    soft[2, 1, 1] = 0.8
    assert label_map(soft, 1).tolist() == [[1, 0], [0, 2]]
