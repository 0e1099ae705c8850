from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from franca_fast.evaluation.dense import token_cut as module
from franca_fast.evaluation.dense.token_cut import (
    affinity,
    box_ious,
    box_of,
    second_eigenvector,
    token_cut,
)
from python_tests.evaluation.golden import arrays, values

GOLDEN = values()["tokencut"]


def plain_components(mask: np.ndarray) -> np.ndarray:
    """4-connected parts by filling, numbered row by row."""
    numbers = np.zeros(mask.shape, int)
    found = 0
    for start in np.argwhere(mask):
        if numbers[tuple(start)]:
            continue
        found += 1
        waiting = [tuple(start)]
        while waiting:
            y, x = waiting.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and mask[y, x] and not numbers[y, x]:
                numbers[y, x] = found
                waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return numbers


def test_golden_cut_and_box() -> None:
    settings = GOLDEN["settings"]
    h, w = settings["grid"]
    keys = arrays()["tokencut.keys"].reshape(h, w, -1).numpy()
    cut = token_cut(keys, settings["tau"], settings["eps"])
    expected = arrays()["tokencut.eigenvector"].numpy()
    np.testing.assert_allclose(cut.eigenvector, expected, atol=1e-5, rtol=0)
    assert cut.seed == GOLDEN["seed"]
    np.testing.assert_array_equal(cut.foreground, arrays()["tokencut.bipartition"].bool())
    np.testing.assert_array_equal(cut.components, arrays()["tokencut.components"].long())
    np.testing.assert_array_equal(cut.mask, arrays()["tokencut.mask"].bool())
    assert list(box_of(cut.mask, settings["patch"], settings["image_size"])) == GOLDEN["box"]


def test_affinity_equals_loops_in_float64() -> None:
    features = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    features[3] = 0  # joined to nothing, not even to itself
    found = affinity(features, 0.1, 1e-3)
    for i, a in enumerate(features.astype(float)):
        for j, b in enumerate(features.astype(float)):
            lengths = np.sqrt((a * a).sum() * (b * b).sum())
            joined = bool(lengths) and (a * b).sum() / lengths > 0.1
            assert found[i, j] == (1.0 if joined else 1e-3)


@pytest.mark.parametrize("n", [2, 3, 17, 40])
def test_eigenvector_solves_the_generalised_problem(n: int) -> None:
    generator = np.random.default_rng(n)
    weights = affinity(generator.normal(size=(n, 5)), 0.2, 1e-5)
    degrees = np.diag(weights.sum(1))
    x = second_eigenvector(weights)
    values, vectors = scipy.linalg.eigh(degrees - weights, degrees)
    np.testing.assert_allclose((degrees - weights) @ x, values[1] * degrees @ x, atol=1e-9)
    assert x @ degrees @ x == pytest.approx(1)
    if n > 2 and values[2] - values[1] > 1e-6:
        np.testing.assert_allclose(np.abs(x), np.abs(vectors[:, 1]), atol=1e-7)


def blocks(sizes: list[int], d: int = 6) -> np.ndarray:
    return np.concatenate([np.tile(np.eye(d)[i], (n, 1)) for i, n in enumerate(sizes)])


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 5, 5], [1, 1, 1, 1, 1]])
def test_repeated_eigenvalues_do_not_depend_on_the_solver(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any basis of the eigenspace gives the same vector."""
    weights = affinity(blocks(sizes), 0.2, 1e-5)
    expected = second_eigenvector(weights)
    generator = np.random.default_rng(0)

    class Turned:
        @staticmethod
        def eigh(matrix: np.ndarray, **subset: object) -> tuple[np.ndarray, np.ndarray]:
            found, vectors = scipy.linalg.eigh(matrix, **subset)
            turn = np.linalg.qr(generator.normal(size=(len(found),) * 2))[0]
            return found, vectors @ turn

    monkeypatch.setattr(module, "need", lambda *_: Turned)
    for _ in range(3):
        found = second_eigenvector(weights)
        np.testing.assert_allclose(found * np.sign(found[0] * expected[0]), expected, atol=1e-8)
    assert np.abs(expected).argmax() in range(sizes[0])  # the first patch weighs most


def test_of_equally_large_entries_the_first_patch_is_the_seed() -> None:
    features = np.zeros((4, 6, 2))
    features[..., 0] = 1
    for rows, columns in ((slice(0, 2), slice(1, 3)), (slice(3, 4), slice(3, 6))):
        features[rows, columns] = (0, 1)
    cut = token_cut(features)
    assert cut.seed == 1
    assert cut.foreground.sum() == 7 and cut.mask.sum() == 4
    np.testing.assert_array_equal(cut.components, plain_components(cut.foreground))


def test_the_smaller_side_is_the_object_and_order_of_channels_plays_no_part() -> None:
    generator = np.random.default_rng(5)
    features = generator.normal(size=(6, 7, 16)) * 0.3
    features[..., 0] += 2
    features[2:5, 1:4, 0] -= 2
    features[2:5, 1:4, 1] += 2
    cut = token_cut(features)
    expected = np.zeros((6, 7), bool)
    expected[2:5, 1:4] = True
    np.testing.assert_array_equal(cut.mask, expected)
    other = token_cut(features[..., ::-1] * 7)  # lengths play none either
    np.testing.assert_allclose(other.eigenvector, cut.eigenvector, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 5), (2, 2)])
def test_the_smallest_grids_have_an_object(shape: tuple[int, int]) -> None:
    for features in (np.ones((*shape, 3)), np.random.default_rng(1).normal(size=(*shape, 3))):
        cut = token_cut(features)
        assert cut.mask.flat[cut.seed] and np.isfinite(cut.eigenvector).all()


def test_boxes_are_clipped_to_the_image() -> None:
    mask = np.zeros((3, 3), bool)
    mask[1:, 2] = True
    assert box_of(mask, 10, (30, 30)) == (20, 10, 30, 30)
    assert box_of(mask, 10, (24, 21)) == (20, 10, 21, 24)


def test_ious_equal_counted_pixels() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        boxes = np.sort(generator.integers(0, 9, size=(4, 2, 2)), axis=1)
        boxes[:, 1] += 1
        flat = boxes.reshape(4, 4)  # x0, y0, x1, y1
        drawn = [np.zeros((10, 10), bool) for _ in flat]
        for image, (left, top, right, bottom) in zip(drawn, flat, strict=True):
            image[top:bottom, left:right] = True
        expected = [(drawn[0] & one).sum() / (drawn[0] | one).sum() for one in drawn]
        found = box_ious(tuple(map(float, flat[0])), flat)
        np.testing.assert_allclose(found, expected)
