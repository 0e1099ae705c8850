"""AdamW with clipping and the teacher's average, against the equation and PyTorch's optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.library import opcheck

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import backends_of, peak_bytes

# Of five tensors: shape, module, learning rate, weight decay, whether there is a teacher.
CASES = (
    ((1,), 0, 1e-2, 0.4, True),
    ((0,), 1, 1e-2, 0.0, True),
    ((3, 5, 7), 1, 3e-3, 0.4, False),
    ((1000,), 2, 0.0, 0.1, True),
    ((250, 20), 2, 2e-2, 0.1, True),
)
SHAPES, MODULES, LRS, DECAYS, FOLLOWED = zip(*CASES, strict=True)
CLIPS, BETAS, EPS = (1.0, 0.25, 0.01), (0.9, 0.999), 1e-8
MOMENTUM = 63 / 64  # what is left to 1 is exact in float32, too
BACKENDS = backends_of("adamw_update")


class Tensors:
    """Parameters and all that is changed with them."""

    def __init__(self, dtype=torch.float32):
        torch.manual_seed(0)
        self.p = [torch.randn(shape).mul(0.1).to(dtype) for shape in SHAPES]
        self.m, self.v = ([torch.zeros_like(p) for p in self.p] for _ in range(2))
        self.steps = [torch.zeros(()) for _ in self.p]
        self.teachers = [
            torch.randn_like(p) if followed else None
            for p, followed in zip(self.p, FOLLOWED, strict=True)
        ]

    def changed(self):
        teachers = [teacher for teacher in self.teachers if teacher is not None]
        return [*self.p, *self.m, *self.v, *self.steps, *teachers]

    def step(self, gradients, **changes):
        arguments = {
            "lrs": LRS,
            "weight_decays": DECAYS,
            "betas": BETAS,
            "eps": EPS,
            "clip_factors": torch.tensor(CLIPS, dtype=self.p[0].dtype),
            "modules": MODULES,
            "teachers": self.teachers,
            "momentum": MOMENTUM,
        }
        ff.ops.adamw_update(
            self.p, gradients, self.m, self.v, self.steps, **{**arguments, **changes}
        )


def gradients_of(step, dtype=torch.float32):
    """Of sizes from 1e-6 to 1e-2."""
    torch.manual_seed(step)
    sizes = (1e-2, 1e-2, 1e-6, 1e-3, 1e-4)
    return [torch.randn(shape).mul(s).to(dtype) for shape, s in zip(SHAPES, sizes, strict=True)]


def step_by_definition(x, n, gradients):
    """The n-th step by the equation."""
    for i, (p, m, v, g) in enumerate(zip(x.p, x.m, x.v, gradients, strict=True)):
        g = CLIPS[MODULES[i]] * g
        m.copy_(BETAS[0] * m + (1 - BETAS[0]) * g)
        v.copy_(BETAS[1] * v + (1 - BETAS[1]) * g**2)
        m_hat, v_hat = m / (1 - BETAS[0] ** n), v / (1 - BETAS[1] ** n)
        p.copy_((1 - LRS[i] * DECAYS[i]) * p - LRS[i] * m_hat / (v_hat.sqrt() + EPS))
        if x.teachers[i] is not None:
            x.teachers[i].copy_(MOMENTUM * x.teachers[i] + (1 - MOMENTUM) * p)
        x.steps[i].fill_(n)


def step_by_pytorch(x, optimizer, gradients):
    """Clipping, torch.optim.AdamW and the average, one after another."""
    for i, (p, g) in enumerate(zip(x.p, gradients, strict=True)):
        p.grad = g * torch.tensor(CLIPS[MODULES[i]])
    optimizer.step()
    for p, teacher in zip(x.p, x.teachers, strict=True):
        if teacher is not None:
            teacher.mul_(MOMENTUM).add_(p * (1 - MOMENTUM))


def largest_error(values, exact):
    """Of all tensors, relative to the largest element of each."""
    return max(
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-300)).item()
        for a, b in zip(values, exact, strict=True)
        if b.numel()
    )


@pytest.mark.parametrize("n_steps", [1, 50])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_as_exact_as_pytorchs_optimizer(backend, n_steps):
    ours, theirs, exact = Tensors(), Tensors(), Tensors()
    exact.p, exact.m, exact.v = ([x.double() for x in xs] for xs in (exact.p, exact.m, exact.v))
    exact.teachers = [None if t is None else t.double() for t in exact.teachers]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p], "lr": lr, "weight_decay": decay}
            for p, lr, decay in zip(theirs.p, LRS, DECAYS, strict=True)
        ],
        betas=BETAS,
        eps=EPS,
        fused=True,
    )
    for n in range(1, n_steps + 1):
        gradients = gradients_of(n)
        step_by_definition(exact, n, [g.double() for g in gradients])
        step_by_pytorch(theirs, optimizer, gradients)
        with ff.use_backend(backend):
            ours.step(gradients)
    theirs.m = [optimizer.state[p]["exp_avg"] for p in theirs.p]
    theirs.v = [optimizer.state[p]["exp_avg_sq"] for p in theirs.p]
    theirs.steps = [optimizer.state[p]["step"] for p in theirs.p]
    error = largest_error(ours.changed(), exact.changed())
    assert error <= 2 * largest_error(theirs.changed(), exact.changed())


def test_the_reference_equals_the_definition_in_float64():
    ours, exact = Tensors(torch.float64), Tensors(torch.float64)
    for n in (1, 2, 3):
        gradients = gradients_of(n, torch.float64)
        step_by_definition(exact, n, gradients)
        ours.step(gradients)
    assert largest_error(ours.changed(), exact.changed()) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_not_finite_changes_no_bit(backend):
    x = Tensors()
    with ff.use_backend(backend):
        x.step(gradients_of(1))
        x.teachers[0].fill_(-0.0)
        before = [y.clone() for y in x.changed()]
        gradients = [torch.full_like(p, math.nan) for p in x.p]
        nans = torch.full((len(CLIPS),), math.nan)
        x.step(gradients, clip_factors=nans, finite=torch.tensor(False))
    for old, new in zip(before, x.changed(), strict=True):
        assert torch.equal(old.view(torch.int32), new.view(torch.int32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_give_the_same_bits(backend):
    first, second = Tensors(), Tensors()
    for x in (first, second):
        with ff.use_backend(backend):
            x.step(gradients_of(1))
            x.step(gradients_of(2))
    assert all(map(torch.equal, first.changed(), second.changed()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_factors_and_teachers_it_is_adamw(backend):
    x, clipped = Tensors(), Tensors()
    with ff.use_backend(backend):
        x.step(gradients_of(1), clip_factors=None, modules=None, teachers=None)
        clipped.step(gradients_of(1), clip_factors=torch.ones(3))
    assert all(map(torch.equal, x.p, clipped.p))
    assert torch.equal(x.teachers[0], Tensors().teachers[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_may_have_any_strides_and_are_not_written(backend):
    x, strided = Tensors(), Tensors()
    gradients = gradients_of(1)
    turned = [g.t().contiguous().t() if g.dim() == 2 else g for g in gradients]
    with ff.use_backend(backend):
        x.step(gradients)
        strided.step(turned)
    assert all(map(torch.equal, x.changed(), strided.changed()))
    assert all(map(torch.equal, turned, gradients_of(1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_teacher_equal_to_its_student_stays(backend):
    p, zero = torch.randn(40), torch.zeros(40)
    teacher, m, v, step = p.clone(), zero.clone(), zero.clone(), torch.zeros(())
    with ff.use_backend(backend):
        for _ in range(300):
            lists = ([p], [zero], [m], [v], [step])
            rates = {"lrs": [0.1], "weight_decays": [0.0]}
            ff.ops.adamw_update(*lists, **rates, teachers=[teacher], momentum=0.99937)
    torch.testing.assert_close(teacher, p, rtol=3e-6, atol=0)


def test_versions_tell_what_has_changed():
    x, gradients = Tensors(), gradients_of(1)
    before = [y._version for y in (*x.changed(), *gradients)]
    x.step(gradients)
    after = [y._version for y in (*x.changed(), *gradients)]
    moved = len(x.changed())
    assert all(old < new for old, new in zip(before[:moved], after[:moved], strict=True))
    assert before[moved:] == after[moved:]


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "torch"])
def test_takes_no_memory_of_the_size_of_the_tensors(backend):
    x, gradients = Tensors(), gradients_of(1)
    with ff.use_backend(backend):
        assert peak_bytes(lambda: x.step(gradients)) < 4000  # of 20 KB in the largest


def test_no_tensors_are_no_error():
    ff.ops.adamw_update([], [], [], [], [], lrs=[], weight_decays=[])


def test_operator_keeps_pytorchs_contract():
    x = Tensors()
    arguments = (x.p, gradients_of(1), x.m, x.v, x.steps, x.teachers, LRS, DECAYS, MODULES)
    constants = (torch.tensor(CLIPS), *BETAS, EPS, MOMENTUM, torch.tensor(True))
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    opcheck(torch.ops.franca_fast.adamw_update.default, (*arguments, *constants), test_utils=tests)


WRONG = {
    r"parameters\[1\]: .*float16": lambda x: x.p.__setitem__(1, x.p[1].half()),
    r"parameters\[4\]: .*contiguous": lambda x: x.p.__setitem__(4, torch.zeros(20, 250).t()),
    r"exp_avgs: 4 entries; accepted: 5": lambda x: x.m.pop(),
    r"exp_avg_sqs\[4\]: .*accepted: as the parameter": lambda x: x.v.__setitem__(4, x.v[3]),
    r"exp_avgs\[4\]: .*contiguous": lambda x: x.m.__setitem__(4, torch.zeros(20, 250).t()),
    r"steps\[0\]: .*accepted: shape \(\)": lambda x: x.steps.__setitem__(0, torch.zeros(1)),
    r"teachers\[0\]: 3": lambda x: x.teachers.__setitem__(0, 3),
}
WRONG_VALUES = {
    r"lrs: .*accepted: 5 numbers": {"lrs": [0.1]},
    r"weight_decays\[4\]: 'x'": {"weight_decays": [0.1, 0.1, 0.1, 0.1, "x"]},
    r"betas\[1\]: 1.0": {"betas": (0.9, 1.0)},
    r"betas: 3": {"betas": 3},
    r"eps: None": {"eps": None},
    r"momentum: 1.5": {"momentum": 1.5},
    r"clip_factors: .*\[modules\]": {"clip_factors": torch.tensor(1.0)},
    r"modules: None": {"modules": None},
    r"modules\[0\]: 3; .*0 to 2": {"modules": (3, 1, 1, 2, 2)},
    r"finite: True": {"finite": True},
    r"finite: .*float32": {"finite": torch.tensor(1.0)},
}


@pytest.mark.parametrize("message", [*WRONG, *WRONG_VALUES])
def test_wrong_arguments_are_named_and_nothing_is_changed(message):
    x, gradients = Tensors(), gradients_of(1)
    WRONG.get(message, lambda x: None)(x)
    with pytest.raises(InputError, match=message):
        x.step(gradients, **WRONG_VALUES.get(message, {}))
    assert torch.equal(x.p[0], Tensors().p[0]) and x.steps[-1] == 0
