"""What the backends of the compiled core share: whether it is there, and tensors as it sees them.

The core, `franca_fast._C`, knows nothing of torch: it is handed addresses, sizes and codes, after
all checks, and results and workspaces to fill.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast.backends.contracts import AdamWProblem, ClusteringProblem
from franca_fast.errors import InputError

try:
    from franca_fast import _C
except ImportError as error:
    _C = None
    _missing: str | None = f"the compiled core is not installed ({error})"
else:
    _missing = None

# Codes of the dtypes that the kernels read, as in csrc/include/franca/views.hpp.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DTYPES = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_CODES)

_warned = False


def missing() -> str | None:
    """Why there is no core, of which the first call warns; or None."""
    global _warned
    if _missing is not None and not _warned:
        _warned = True
        warnings.warn(
            "franca_fast was installed without its compiled core, so the slower 'torch' backend "
            "runs. Install a C++17 compiler and reinstall franca_fast to build it.",
            RuntimeWarning,
            stacklevel=2,
        )
    return _missing


def unreadable(tensor: Tensor, device: str) -> str | None:
    """Why kernels of a device cannot read tensors like `tensor`; or None."""
    if tensor.device.type != device:
        return f"it runs on {device} tensors"
    return None if tensor.dtype in DTYPE_CODES else f"it reads {_DTYPES}"


class Heads(NamedTuple):
    """Matrices of all heads.

    Attributes:
        numbers: Address, columns and row stride of each head, one after the other.
        n_rows: Rows of every head.
        dtype: Code of the dtype.
        columns: Columns of each head.
        tensors: What the addresses point into; to be kept until the kernel has returned.
    """

    numbers: list[int]
    n_rows: int
    dtype: int
    columns: list[int]
    tensors: list[Tensor]


CPU = torch.device("cpu")


def pack_heads(matrices: Sequence[Tensor], name: str, device: torch.device = CPU) -> Heads:
    """Checks matrices [N, K_i] of one dtype on `device` and lays them out for the core.

    Rows may have any distance. Matrices whose columns are not adjacent are copied.

    Raises:
        InputError: If shapes, dtypes or devices do not fit together.
    """
    if not matrices:
        raise InputError(f"{name}: no heads; accepted: at least one head")
    reference = matrices[0]
    dtype = reference.dtype
    if dtype not in DTYPE_CODES:
        raise InputError(f"{name}: dtype {dtype}; accepted: {_DTYPES}")
    n_rows = reference.shape[0] if reference.dim() else 0
    numbers: list[int] = []
    columns: list[int] = []
    tensors: list[Tensor] = []
    for z in matrices:
        shape = z.shape
        if len(shape) != 2 or shape[0] != n_rows or z.dtype is not dtype or z.device != device:
            raise InputError(
                f"{name}[{len(columns)}]: {z.dtype} on {z.device} of shape {list(shape)}; "
                f"accepted: {dtype} on {device} of shape [{n_rows}, K]"
            )
        width = shape[1]
        row_stride, column_stride = z.stride()
        if column_stride != 1 and width > 1:
            z = z.contiguous()
            row_stride = width
        numbers += (z.data_ptr(), width, row_stride)
        columns.append(width)
        tensors.append(z)
    return Heads(numbers, n_rows, DTYPE_CODES[dtype], columns, tensors)


def places(out: Sequence[Tensor], student: Heads, device: torch.device = CPU) -> list[int]:
    """Where gradients of the student's scores go, as the core takes it.

    Raises:
        InputError: If they have other shapes, another dtype or device, or columns apart.
    """
    heads = pack_heads(out, "out", device)
    form = (student.columns, student.n_rows, student.dtype)
    if (heads.columns, heads.n_rows, heads.dtype) != form:
        raise InputError(
            f"out: {heads.n_rows} rows of {heads.columns} columns; "
            f"accepted: shapes and dtype of the student's scores"
        )
    if any(packed is not given for packed, given in zip(heads.tensors, out, strict=True)):
        raise InputError("out: columns apart; accepted: adjacent columns of each gradient")
    return heads.numbers


def vector(
    tensor: Tensor,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Tensor:
    """Checks a small input and returns it contiguous.

    Raises:
        InputError: If the shape, dtype or device is another one.
    """
    if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
        raise InputError(
            f"{name}: {tensor.dtype} on {tensor.device} of shape {list(tensor.shape)}; "
            f"accepted: {dtype} on {device} of shape {list(shape)}"
        )
    return tensor.contiguous()


def pack_targets(
    problem: ClusteringProblem,
    n_student: int,
    n_teacher: int,
    columns: list[int],
    device: torch.device = CPU,
) -> tuple[tuple[float, ...], tuple[Tensor, ...]]:
    """Checks what a problem has beside the scores and lays it out for the core.

    Returns:
        The last arguments of the core's problems: addresses of potentials of prototypes and rows,
        both temperatures, address of the teacher rows, their number P for each student row, and
        address of the weights. And the tensors that the addresses point into.

    Raises:
        InputError: If shapes, dtypes or devices do not fit together.
    """
    rows = problem.teacher_rows
    n_targets = rows.shape[1] if rows.dim() == 2 else 1
    a = vector(
        problem.prototype_potentials,
        "prototype_potentials",
        (sum(columns),),
        torch.float32,
        device,
    )
    b = vector(
        problem.row_potentials, "row_potentials", (len(columns), n_teacher), torch.float32, device
    )
    weights = vector(problem.weights, "weights", (n_student,), torch.float32, device)
    rows = vector(rows, "teacher_rows", (n_student, n_targets), torch.int64, device)
    numbers = (
        a.data_ptr(),
        b.data_ptr(),
        problem.student_temperature,
        problem.teacher_temperature,
        rows.data_ptr(),
        n_targets,
        weights.data_ptr(),
    )
    return numbers, (a, b, rows, weights)


class StoredProblem(NamedTuple):
    """A clustering problem on stored scores.

    Attributes:
        view: As the core takes it.
        student: Its student side.
        alive: What the addresses point into.
    """

    view: Any
    student: Heads
    alive: tuple[object, ...]


def pack_problem(problem: ClusteringProblem, device: torch.device = CPU) -> StoredProblem:
    """Checks a problem and lays it out for the core.

    Raises:
        InputError: If shapes, dtypes or devices do not fit together.
    """
    student = pack_heads(problem.student.values, "student", device)
    teacher = pack_heads(problem.teacher.values, "teacher", device)
    numbers, alive = pack_targets(problem, student.n_rows, teacher.n_rows, teacher.columns, device)
    view = _C.ClusteringProblem(*student[:3], *teacher[:3], *numbers)
    return StoredProblem(view, student, (teacher, alive))


def adamw_arguments(problem: AdamWProblem) -> tuple[Any, ...]:
    """Lays an update out for the core; what it holds must be kept until the kernel has returned."""
    numbers: list[int] = []
    rates: list[float] = []
    for p, g, m, v, step, teacher, lr, decay, module in zip(*problem[:9], strict=True):
        numbers += (p.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr(), step.data_ptr())
        numbers += (0 if teacher is None else teacher.data_ptr(), p.numel(), module)
        rates += (lr, decay)
    clip = problem.clip_factors
    factors = (0, 0) if clip is None else (clip.data_ptr(), clip.numel())
    return numbers, rates, *factors, problem.finite.data_ptr(), problem[10:14]
