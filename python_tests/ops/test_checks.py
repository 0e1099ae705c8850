"""Bad input to every operator: an error that names the argument, the value and what is accepted."""

from __future__ import annotations

import math

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError

Z = torch.zeros(6, 8)
X, V = torch.zeros(6, 4), torch.zeros(8, 4)
Q = torch.zeros(6, 2, 4)
ELSEWHERE = "meta"

MATRICES = {
    "None": None,
    "list of None": [None],
    "list of lists": [[1.0, 2.0]],
    "string": "abc",
    "number": 3.0,
    "array": Z.cpu().numpy(),
    "dictionary": {"head": Z},
    "integers": Z.long(),
    "booleans": Z > 0,
    "complex": Z.cfloat(),
    "sparse": Z.to_sparse(),
    "one dimension": Z[0],
    "three dimensions": Z.unsqueeze(0),
    "no heads": [],
    "no columns": Z[:, :0],
    "ragged rows": [Z, Z[:3]],
    "two dtypes": [Z, Z.double()],
    "two devices": [Z, Z.to(ELSEWHERE)],
}
TEMPERATURES = {
    "zero": 0,
    "negative": -1.0,
    "tiny": 1e-30,
    "nan": math.nan,
    "infinite": math.inf,
    "None": None,
    "string": "0.1",
    "boolean": True,
    "tensor": torch.tensor(0.1),
    "complex": 0.1j,
}
COUNTS = {"fraction": 1.5, "string": "3", "boolean": True, "negative": -1, "tensor": torch.ones(1)}
GROUPS = {"string": "x", "number": 3, "boolean": True}
VECTORS = {  # of 8 numbers for one head
    "None": None,
    "one tensor": torch.zeros(8),
    "lists": [[0.0] * 8],
    "too short": [torch.zeros(7)],
    "two of them": [torch.zeros(4), torch.zeros(4)],
    "another device": [torch.zeros(8, device=ELSEWHERE)],
    "integers": [torch.zeros(8, dtype=torch.int64)],
}
ROWS = {
    "list": [0] * 6,
    "string": "x",
    "one dimension": torch.zeros(6, dtype=torch.int64),
    "no targets": torch.zeros(6, 0, dtype=torch.int64),
    "fractions": torch.zeros(6, 1),
    "int32": torch.zeros(6, 1, dtype=torch.int32),
    "another device": torch.zeros(6, 1, dtype=torch.int64, device=ELSEWHERE),
}
WEIGHTS = {
    "list": [1.0] * 6,
    "string": "x",
    "two dimensions": torch.ones(6, 1),
    "complex": torch.ones(6).cfloat(),
    "another device": torch.ones(6, device=ELSEWHERE),
}


def loss(student=Z, targets=None, **options):
    if targets is None:
        targets = ff.ops.sinkhorn_targets(Z, 0.1)
    return ff.ops.clustering_cross_entropy(student, targets, **options)


def targets_with(**changes):
    return ff.ops.sinkhorn_targets(Z, 0.1)._replace(**changes)


def potentials_of(prototype=None, row=None):
    good = ff.ops.sinkhorn_potentials(Z, 0.1)
    return (prototype or good.prototype, row or good.row)


def attention(q=Q, k=Q, v=Q, seqlens=(6,), scale=None):
    return ff.ops.varlen_attention(q, k, v, seqlens, scale)


def streamed(features=(X,), prototypes=(V,), scales=(Z[0],)):
    return ff.ops.Scores(features, prototypes, scales)


# The argument that the message must name, a call with a bad value, and bad values.
TABLE = [
    ("logits", lambda bad: ff.ops.sinkhorn_knopp(bad, 0.1), MATRICES),
    ("logits", lambda bad: ff.ops.sinkhorn_potentials(bad, 0.1), MATRICES),
    ("logits", lambda bad: ff.ops.sinkhorn_targets(bad, 0.1), MATRICES),
    ("logits", lambda bad: ff.ops.centered_targets(bad, 0.1, [torch.zeros(8)]), MATRICES),
    ("logits.values", lambda bad: ff.ops.sinkhorn_knopp(ff.ops.Scores(bad), 0.1), MATRICES),
    ("student", lambda bad: loss(student=bad), MATRICES),
    ("targets.scores", lambda bad: loss(targets=targets_with(scores=bad)), MATRICES),
    ("logits", lambda bad: ff.ops.sinkhorn_knopp(bad, 0.1), {"streamed": streamed()}),
    ("student", lambda bad: loss(student=bad), {"streamed": streamed()}),
    (
        "student",
        lambda bad: loss(student=bad, targets=ff.ops.sinkhorn_targets(streamed(), 0.1)),
        {"stored": Z},
    ),
    ("temperature", lambda bad: ff.ops.sinkhorn_knopp(Z, bad), TEMPERATURES),
    ("temperature", lambda bad: ff.ops.centered_targets(Z, bad, [torch.zeros(8)]), TEMPERATURES),
    (
        "targets.temperature",
        lambda bad: loss(targets=targets_with(temperature=bad)),
        TEMPERATURES,
    ),
    ("student_temperature", lambda bad: loss(student_temperature=bad), TEMPERATURES),
    ("n_iterations", lambda bad: ff.ops.sinkhorn_knopp(Z, 0.1, bad), {"zero": 0, **COUNTS}),
    ("n_valid", lambda bad: ff.ops.sinkhorn_knopp(Z, 0.1, n_valid=bad), {"7": 7, **COUNTS}),
    ("group", lambda bad: ff.ops.sinkhorn_knopp(Z, 0.1, group=bad), GROUPS),
    ("group", lambda bad: ff.ops.sinkhorn_potentials(Z, 0.1, group=bad), GROUPS),
    ("group", lambda bad: ff.ops.centered_targets(Z, 0.1, [Z[0]], group=bad), GROUPS),
    ("center", lambda bad: ff.ops.centered_targets(Z, 0.1, bad), VECTORS),
    (
        "targets",
        lambda bad: ff.ops.clustering_cross_entropy(Z, bad),
        {
            "None": None,
            "teacher's logits": Z,
            "all of them": [Z],
            "Scores": ff.ops.Scores((Z,)),
            "potentials": ff.ops.sinkhorn_potentials(Z, 0.1),
        },
    ),
    (
        "targets.potentials",
        lambda bad: loss(targets=targets_with(potentials=bad)),
        {"None": None, "tensor": Z, "one": (Z,), "None twice": (None, None), "lists": ([0], [0])},
    ),
    (
        "targets.potentials",
        lambda bad: loss(targets=targets_with(potentials=potentials_of(prototype=bad))),
        {name: bad for name, bad in VECTORS.items() if isinstance(bad, list)},
    ),
    ("teacher_rows", lambda bad: loss(teacher_rows=bad), ROWS),
    ("weights", lambda bad: loss(weights=bad), WEIGHTS),
    ("overwrite_student", lambda bad: loss(overwrite_student=bad), {"1": 1, "None": None}),
    (
        "features",
        lambda bad: ff.ops.prototype_scores(bad, [V]),
        {"None": None, "tensor": X, "lists": [[1.0]], "none": [], "integers": [X.long()]},
    ),
    (
        "prototypes",
        lambda bad: ff.ops.prototype_scores([X], bad),
        {"tensor": V, "two": [V, V], "narrow": [V[:, :2]], "double": [V.double()], "None": None},
    ),
    (
        "scales",
        lambda bad: ff.ops.prototype_scores([X], [V], scales=bad),
        {name: bad for name, bad in VECTORS.items() if bad is not None},
    ),
    (
        "logits.values",
        lambda bad: ff.ops.sinkhorn_potentials(streamed(features=bad), 0.1),
        {"None": None, "tensor": X, "none": (), "lists": ([1.0],)},
    ),
    (
        "logits.prototypes",
        lambda bad: ff.ops.sinkhorn_potentials(streamed(prototypes=bad), 0.1),
        {"None": None, "tensor": V, "none beside scales": (), "narrow": (V[:, :2],)},
    ),
    ("logits.scales", lambda bad: ff.ops.sinkhorn_potentials(streamed(scales=bad), 0.1), VECTORS),
    (
        "q",
        lambda bad: attention(q=bad),
        {"None": None, "list": [1.0], "integers": Q.long(), "flat": X},
    ),
    ("k", lambda bad: attention(k=bad), {"other": Q.double(), "meta": Q.to(ELSEWHERE)}),
    (
        "seqlens",
        lambda bad: attention(seqlens=bad),
        {
            "None": None,
            "number": 6,
            "none": [],
            "fractions": [6.0],
            "words": ["a"],
            "short": [5],
            "negative": [7, -1],
            "tensor": torch.tensor([6]),
        },
    ),
    (
        "h",
        ff.ops.swiglu,
        {
            "None": None,
            "list": [1.0, 2.0],
            "integers": Z.long(),
            "complex": Z.cfloat(),
            "sparse": Z.to_sparse(),
            "a scalar": torch.zeros(()),
            "odd": Z[:, :7],
            "no columns": Z[:, :0],
        },
    ),
    (
        "scale",
        lambda bad: attention(scale=bad),
        {"nan": math.nan, "infinite": math.inf, "string": "x", "tensor": torch.ones(())},
    ),
]


@pytest.mark.parametrize(
    ("name", "call", "bad"),
    [
        pytest.param(name, call, bad, id=f"{i}-{name}-{what}")
        for i, (name, call, values) in enumerate(TABLE)
        for what, bad in values.items()
    ],
)
def test_is_refused_by_name(name, call, bad):
    with pytest.raises(InputError, match=rf"^{name}\b.*; ?accepted") as raised:
        call(bad)
    assert len(str(raised.value)) < 400


GOOD = {
    "no rows": lambda: ff.ops.sinkhorn_knopp(Z[:0], 0.1),
    "columns apart": lambda: ff.ops.sinkhorn_knopp(Z.t(), 0.1),
    "numpy's number": lambda: ff.ops.sinkhorn_knopp(Z, Z.cpu().numpy().dtype.type(0.1)),
    "whole temperature": lambda: ff.ops.sinkhorn_knopp(Z, 1),
    "whole weights": lambda: loss(weights=torch.ones(6, dtype=torch.int64)),
    "half student, float teacher": lambda: loss(student=Z.half()),
    "a tuple for potentials": lambda: loss(targets=targets_with(potentials=potentials_of())),
    "a tensor for the targets' scores": lambda: loss(targets=targets_with(scores=Z)),
    "no features": lambda: ff.ops.prototype_scores([X[:0]], [V]),
    "no rows for SwiGLU": lambda: ff.ops.swiglu(Z[:0]),
    "SwiGLU of one pair": lambda: ff.ops.swiglu(Z[0, :2]),
    "no depth": lambda: ff.ops.prototype_scores([X[:, :0]], [V[:, :0]]),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good_input_works(name):
    result = GOOD[name]()
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
