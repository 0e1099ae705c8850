from __future__ import annotations

import numpy as np

from franca_fast.data.randomness import Purpose, permutation, uniforms


def test_rows_depend_only_on_their_counter() -> None:
    all_rows = uniforms(3, Purpose.GEOMETRY, np.arange(50), 7)
    one_row = uniforms(3, Purpose.GEOMETRY, np.array([17]), 7)
    np.testing.assert_array_equal(all_rows[17], one_row[0])


def test_values_never_change_between_versions() -> None:
    # A checkpoint holds counters only: other numbers would continue a run on other data.
    values = uniforms(42, Purpose.SAMPLE_ORDER, np.array([[1, 2]]), 2)[0]
    np.testing.assert_array_equal(values, [0.19177367187972794, 0.2209865896563794])


def test_uniform_and_independent() -> None:
    u = uniforms(0, Purpose.PHOTOMETRY, np.arange(20_000), 3)
    assert u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(0), 1 / 12, atol=0.002)
    correlation = np.corrcoef(np.concatenate([u, np.roll(u, 1, 0)], 1).T)
    np.testing.assert_allclose(correlation, np.eye(6), atol=0.03)


def test_seed_purpose_and_every_part_of_the_counter_matter() -> None:
    def first(seed: int, purpose: Purpose, *parts: int) -> float:
        return float(uniforms(seed, purpose, np.array([parts]), 1)[0, 0])

    values = [
        first(0, Purpose.GEOMETRY, 1, 2),
        first(1, Purpose.GEOMETRY, 1, 2),
        first(0, Purpose.PHOTOMETRY, 1, 2),
        first(0, Purpose.GEOMETRY, 2, 1),
        first(0, Purpose.GEOMETRY, 1, 3),
        first(-1, Purpose.GEOMETRY, 1, 2),
    ]
    assert len(set(values)) == len(values)


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    orders = [permutation(0, Purpose.SHARD_ORDER, (epoch,), 100) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(orders[0], orders[1])
    assert len(permutation(0, Purpose.SHARD_ORDER, (0,), 0)) == 0
