"""The compiled half-steps of Sinkhorn-Knopp, with every instruction set that this machine runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from franca_fast import _C, ops, use_backend
from franca_fast.backends._sinkhorn_iteration import balance
from franca_fast.backends.contracts import Scores
from franca_fast.backends.cpu import sinkhorn
from franca_fast.backends.torch import sinkhorn as reference
from franca_fast.errors import InputError
from python_tests.backends.cpu.helpers import (
    DTYPES,
    assert_as_exact,
    misaligned,
    poisoned_memory,
    threads,
)
from python_tests.helpers import peak_bytes

SHAPES = [
    (1, [1]),
    (2, [5, 1]),
    (7, [33, 1, 700, 1024]),
    (65, [515, 40]),
    (130, [128, 256, 2000]),
    (300, [17]),
]


pytestmark = pytest.mark.usefixtures("isa")


def make_logits(n, columns, dtype=torch.float32, scale=1.0):
    return Scores([(torch.randn(n, k) * scale).clamp(-1e4, 1e4).to(dtype) for k in columns])


def double(scores):
    return Scores([z.double() for z in scores.values])


def make_potentials(logits, temperature, n_valid):
    maximum, total = reference.column_logsumexp(double(logits), temperature, n_valid)
    return torch.where(total > 0, -(maximum + total.log()), 0.0).float()


def all_passes(module, logits, temperature, a, n_valid):
    """Everything that the module computes, with potentials that are what they stand for."""
    maximum, total = module.column_logsumexp(logits, temperature, n_valid)
    row, mass = module.row_step(logits, temperature, a, n_valid, True)
    out = {
        "lse": (maximum.double() + total.double().log()).to(maximum.dtype),
        "row": row,
        "mass": mass,
    }
    out |= {f"q{i}": q for i, q in enumerate(module.assignments(logits, temperature, a, n_valid))}
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.04, 0.07])
@pytest.mark.parametrize(("n", "columns"), SHAPES)
def test_is_as_exact_as_torch(n, columns, temperature, dtype):
    results = []
    for _ in range(5):
        logits = make_logits(n, columns, dtype)
        a = make_potentials(logits, temperature, n)
        exact = all_passes(reference, double(logits), temperature, a.double(), n)
        by_torch = all_passes(reference, logits, temperature, a, n)
        ours = all_passes(sinkhorn, logits, temperature, a, n)
        results.append((ours, by_torch, exact))
    assert_as_exact(results)


def balanced(module, logits, temperature, n_valid):
    """Three iterations by the passes of a module."""
    maximum, total = module.column_logsumexp(logits, temperature, n_valid)
    a = -(maximum + total.log())
    for _ in range(2):
        _, mass = module.row_step(logits, temperature, a, n_valid, True)
        a = a - mass.log()
    return a, module.row_step(logits, temperature, a, n_valid, False)[0]


def described(potentials, logits, temperature):
    """The prototype potentials, and the assignments that both potentials stand for."""
    a, row = potentials
    parts = a.split([z.shape[1] for z in logits.values])
    exponents = [
        z.double() / temperature + a.double() + b.double().unsqueeze(1)
        for z, a, b in zip(logits.values, parts, row, strict=True)
    ]
    q = {f"q{i}": y.exp().to(a.dtype) for i, y in enumerate(exponents)}
    return {"prototype": a, **q}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "columns"), SHAPES)
def test_all_iterations_at_once_are_as_exact_as_torch(n, columns, dtype):
    results = []
    for _ in range(5 if n > 10 else 60):  # of few values, torch's error may be nought by luck
        logits = make_logits(n, columns, dtype, scale=0.5)
        ours = sinkhorn._joined(logits, 0.06, 3, n)
        assert ours is not None
        by_torch = balanced(reference, logits, 0.06, n)
        exact = balanced(reference, double(logits), 0.06, n)
        results.append(tuple(described(p, logits, 0.06) for p in (ours, by_torch, exact)))
    assert_as_exact(results)


@pytest.mark.parametrize("n_iterations", [1, 2, 5])
def test_all_iterations_at_once_for_any_number_of_them(n_iterations):
    logits = make_logits(40, [600, 40])
    with use_backend("torch"):
        exact = ops.sinkhorn_potentials(double(logits), 0.1, n_iterations)
    a, row = sinkhorn._joined(logits, 0.1, n_iterations, 40)
    torch.testing.assert_close(a.double(), torch.cat(exact.prototype), rtol=0, atol=1e-5)
    torch.testing.assert_close(row.double(), torch.stack(exact.row), rtol=0, atol=1e-5)


def test_first_rows_that_say_nothing_of_the_others_do_not_matter():
    logits = make_logits(40, [300, 17], scale=0.1)
    for z in logits.values:
        z[:20] -= 4.8  # e^48 below the others
    with use_backend("torch"):
        exact = ops.sinkhorn_potentials(double(logits), 0.1, 1)
    a, _ = sinkhorn._joined(logits, 0.1, 1, 40)
    torch.testing.assert_close(a.double(), torch.cat(exact.prototype), rtol=1e-6, atol=1e-5)


def test_large_assignments_have_the_bits_of_small_ones():
    # Large ones are written past the caches, in whole vectors, which odd rows do not begin with.
    z, a = torch.randn(3, 700_001), torch.randn(700_001)
    (together,) = sinkhorn.assignments(Scores([z]), 0.1, a, 3)
    for n in range(3):
        (alone,) = sinkhorn.assignments(Scores([z[n : n + 1]]), 0.1, a, 1)
        assert torch.equal(together[n], alone[0])


@pytest.mark.parametrize("layout", [misaligned, lambda z: z.t().contiguous().t()])
def test_all_iterations_at_once_in_any_layout_memory_and_number_of_threads(layout):
    logits = make_logits(70, [3000, 257, 1])
    expected = sinkhorn.potentials(logits, 0.1, 3, 64)
    for z in logits.values:
        z[64:] = float("nan")
    for count in (1, 2, 5):
        with threads(count), poisoned_memory():
            got = sinkhorn.potentials(Scores([layout(z) for z in logits.values]), 0.1, 3, 64)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert (got[1][:, 64:] == float("-inf")).all()


@pytest.mark.parametrize(
    ("logits", "n_valid"),
    [
        ([torch.randn(20, 3) * 100], 20),  # the row sums would underflow
        ([torch.full((4, 3), float("nan"))], 4),
        ([torch.zeros(4, 3)], 0),
        ([torch.zeros(1025, 3)], 1025),
    ],
)
def test_all_iterations_at_once_leave_hard_cases_to_the_passes(logits, n_valid):
    scores = Scores(logits)
    assert sinkhorn._joined(scores, 0.05, 3, n_valid) is None
    found = sinkhorn.potentials(scores, 0.05, 3, n_valid)
    expected = balance(sinkhorn.column_logsumexp, sinkhorn.row_step, scores, 0.05, 3, n_valid)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_logits(scale):
    logits = make_logits(50, [600, 40], scale=scale)
    a = make_potentials(logits, 0.04, 50)
    row, mass = sinkhorn.row_step(logits, 0.04, a, 50, True)
    assert row.isfinite().all() and mass.isfinite().all()
    for q in sinkhorn.assignments(logits, 0.04, a, 50):
        torch.testing.assert_close(q.sum(dim=1), torch.ones(50), rtol=0, atol=1e-5)
    exact, _ = reference.row_step(double(logits), 0.04, a.double(), 50, False)
    bound = 4 * torch.finfo(torch.float32).eps * max(z.abs().max() for z in logits.values) / 0.04
    assert (row - exact).abs().max() <= bound


@pytest.mark.parametrize("offset", [-500.0, 500.0])
def test_potentials_that_need_a_shift(offset):
    logits = make_logits(9, [700, 3])
    a = make_potentials(logits, 0.05, 9) + offset
    row, mass = sinkhorn.row_step(logits, 0.05, a, 9, True)
    exact_row, exact_mass = reference.row_step(double(logits), 0.05, a.double(), 9, True)
    torch.testing.assert_close(row.double(), exact_row, rtol=1e-6, atol=0)
    torch.testing.assert_close(mass.double(), exact_mass, rtol=3e-4, atol=0)


def test_padding_takes_no_part():
    logits = make_logits(12, [40, 700])
    a = make_potentials(logits, 0.05, 8)
    cut = all_passes(sinkhorn, Scores([z[:8] for z in logits.values]), 0.05, a, 8)
    for z in logits.values:
        z[8:] = float("nan")
    padded = all_passes(sinkhorn, logits, 0.05, a, 8)
    assert torch.equal(padded["lse"], cut["lse"])
    assert torch.equal(padded["mass"], cut["mass"])
    assert torch.equal(padded["row"][:, :8], cut["row"])
    assert (padded["row"][:, 8:] == float("-inf")).all()
    assert (padded["q0"][8:] == 0).all() and (padded["q1"][8:] == 0).all()


@pytest.mark.parametrize("n_rows", [0, 3])
def test_no_valid_rows(n_rows):
    logits = make_logits(n_rows, [5, 600])
    maximum, total = sinkhorn.column_logsumexp(logits, 0.1, 0)
    row, mass = sinkhorn.row_step(logits, 0.1, torch.zeros(605), 0, True)
    assert (maximum == float("-inf")).all() and (total == 0).all() and (mass == 0).all()
    assert row.shape == (2, n_rows) and (row == float("-inf")).all()
    assert [q.shape for q in sinkhorn.assignments(logits, 0.1, torch.zeros(605), 0)] == [
        (n_rows, 5),
        (n_rows, 600),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layout",
    [
        misaligned,
        lambda z: z.t().contiguous().t(),
        lambda z: z.repeat(2, 2)[:, : z.shape[1]][: len(z)],
    ],
    ids=["misaligned", "transposed", "strided"],
)
def test_layout_does_not_matter(layout, dtype):
    logits = make_logits(20, [37, 513, 1], dtype)
    a = make_potentials(logits, 0.05, 20)
    expected = all_passes(sinkhorn, logits, 0.05, a, 20)
    got = all_passes(sinkhorn, Scores([layout(z) for z in logits.values]), 0.05, a, 20)
    for name, values in expected.items():
        assert torch.equal(values, got[name]), name


def test_one_row_for_all():
    row = torch.randn(1, 600)
    a = make_potentials(Scores([row]), 0.05, 1)
    expanded = all_passes(sinkhorn, Scores([row.expand(9, 600)]), 0.05, a, 9)
    repeated = all_passes(sinkhorn, Scores([row.repeat(9, 1)]), 0.05, a, 9)
    for name, values in expanded.items():
        assert torch.equal(values, repeated[name]), name


def test_results_have_the_same_bits_for_any_number_of_threads():
    logits = make_logits(200, [3000, 257, 40])
    a = make_potentials(logits, 0.05, 200)
    results = []
    for count in (1, 1, 2, 3, 5):
        with threads(count):
            results.append(all_passes(sinkhorn, logits, 0.05, a, 200))
    for other in results[1:]:
        assert all(torch.equal(values, other[name]) for name, values in results[0].items())


def test_what_memory_held_before_does_not_matter():
    logits = make_logits(70, [300, 1, 513])
    a = make_potentials(logits, 0.05, 64)
    expected = all_passes(sinkhorn, logits, 0.05, a, 64)
    with poisoned_memory():
        poisoned = all_passes(sinkhorn, logits, 0.05, a, 64)
    assert all(torch.equal(values, poisoned[name]) for name, values in expected.items())


def test_calls_from_several_threads():
    logits = make_logits(40, [900])
    a = make_potentials(logits, 0.05, 40)
    expected = sinkhorn.row_step(logits, 0.05, a, 40, True)[1]
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(sinkhorn.row_step, logits, 0.05, a, 40, True) for _ in range(32)]
        assert all(torch.equal(call.result()[1], expected) for call in calls)


def test_workspace_stays_small_beside_the_logits():
    for n in (64, 512, 3072):
        assert _C.row_step_workspace(253952, n) <= n * 253952 * 4 / 32


@pytest.mark.parametrize("joined", [True, False])
def test_needs_little_memory_beside_few_rows(joined, monkeypatch):
    if not joined:  # as over several ranks
        monkeypatch.setattr(sinkhorn, "_joined", lambda *_: None)
    # 32 KiB for each thread come to it, which heads of a usual size do not notice.
    z = make_logits(64, [8192, 16384])
    with use_backend("cpu"):
        used = peak_bytes(lambda: ops.sinkhorn_potentials(z, 0.05))
    assert used <= 0.05 * sum(x.numel() for x in z.values) * 4


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([], "at least one head"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], r"scores\[1\].*shape \[2, K\]"),
        ([torch.zeros(2, 3), torch.zeros(2, 3).bfloat16()], r"scores\[1\].*bfloat16"),
        ([torch.zeros(2)], r"scores\[0\].*shape \[2\]"),
        ([torch.zeros(2, 3).double()], "float64; accepted: float32"),
        ([torch.zeros(2, 3, device="meta")], "meta"),
        ([torch.zeros(2, 0)], "at least 1 is needed"),
    ],
)
def test_wrong_logits_are_named(logits, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn.column_logsumexp(Scores(logits), 0.1, 2)


@pytest.mark.parametrize(
    ("temperature", "n_valid", "message"),
    [
        (0.0, 2, "temperature is 0"),
        (float("nan"), 2, "temperature is nan"),
        (-1.0, 2, "must be positive"),
        (0.1, 3, "n_valid is 3"),
        (0.1, -1, "n_valid is -1"),
    ],
)
def test_wrong_numbers_are_named(temperature, n_valid, message):
    logits = Scores([torch.zeros(2, 3)])
    with pytest.raises(ValueError, match=message):
        sinkhorn.column_logsumexp(logits, temperature, n_valid)
    with pytest.raises(ValueError, match=message):
        sinkhorn.row_step(logits, temperature, torch.zeros(3), n_valid, False)
    with pytest.raises(ValueError, match=message):
        sinkhorn.assignments(logits, temperature, torch.zeros(3), n_valid)


@pytest.mark.parametrize("a", [torch.zeros(4), torch.zeros(3).double(), torch.zeros(1, 3)])
def test_wrong_potentials_are_named(a):
    with pytest.raises(InputError, match=r"prototype_potentials: .*; accepted"):
        sinkhorn.row_step(Scores([torch.zeros(2, 3)]), 0.1, a, 2, True)
