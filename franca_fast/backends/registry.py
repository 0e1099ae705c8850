"""Chooses which implementation of an operator runs.

An implementation is a module `franca_fast/backends/<package>/<operator>.py`; that file's existence
is what makes a backend offer an operator. The choice depends on the device and dtype of the tensors
and on what is installed, on a GPU also on the table of choices. `FRANCA_FAST_BACKEND` or
`use_backend` asks for one backend; a request that cannot be met is an error that says why, never a
silent fall-back.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import TracebackType
from typing import Any, Literal, NamedTuple, overload

import torch

from franca_fast.backends.choices import path, table
from franca_fast.backends.contracts import (
    BACKENDS,
    OPERATORS,
    AdamWUpdate,
    ClusteringCrossEntropy,
    PrototypeScores,
    Sinkhorn,
    StreamedClustering,
    SwiGLU,
    VarlenAttention,
    WeightNormScores,
)
from franca_fast.errors import InputError, did_you_mean

# Triton's interpreter runs CPU tensors, far slower than any other backend: it is for tests.
_ON_REQUEST_ONLY = ("triton", "cpu")
_AUTO = "auto"
_ENVIRONMENT = "FRANCA_FAST_BACKEND"


class BackendRow(NamedTuple):
    """One line of the table of backends.

    Attributes:
        operator: Name of the operator.
        device: Device type of the tensors, "cpu" or "cuda".
        backend: Name of the backend.
        available: Whether it can run here on float32 tensors of that device.
        chosen: Whether it is the one that runs.
        reason: Why it cannot run, or why it was chosen; may be empty.
    """

    operator: str
    device: str
    backend: str
    available: bool
    chosen: bool
    reason: str


_requested: str | None = None  # None: not asked for in this process, the environment decides
_choices: dict[tuple[str, str, torch.dtype], Any] = {}


def _check_name(name: str, origin: str) -> str:
    known = (_AUTO, *BACKENDS)
    if name not in known:
        raise InputError(
            f"{origin}: unknown backend {name!r}{did_you_mean(str(name), known)}; "
            f"accepted: {', '.join(known)}"
        )
    return name


def _request() -> str:
    if _requested is not None:
        return _requested
    return _check_name(os.environ.get(_ENVIRONMENT) or _AUTO, _ENVIRONMENT)


def is_requested(backend: str) -> bool:
    """Whether `backend` was asked for, rather than chosen automatically."""
    return _request() == backend


def _offers(backend: str, operator: str) -> bool:
    package = f"{__package__}.{backend}"
    return importlib.util.find_spec(f"{package}.{operator}") is not None


def _unavailable(backend: str, operator: str, tensor: torch.Tensor) -> str | None:
    """Why `backend` cannot run `operator` on tensors like `tensor`, or None when it can."""
    if not _offers(backend, operator):
        return f"the {backend} backend has no {operator}"
    package = importlib.import_module(f"{__package__}.{backend}")
    return package.unavailable(operator, tensor)


def available(operator: str, tensor: torch.Tensor) -> list[str]:
    """Names of the backends that can run `operator` on tensors like `tensor`, best first."""
    return [name for name in BACKENDS if _unavailable(name, operator, tensor) is None]


def _select(operator: str, tensor: torch.Tensor) -> str:
    request = _request()
    # A request binds the operators that the backend offers; the others stay automatic.
    if request != _AUTO and _offers(request, operator):
        reason = _unavailable(request, operator, tensor)
        if reason is not None:
            raise InputError(
                f"backend {request!r} was asked for but cannot run {operator} on {tensor.dtype} "
                f"tensors on {tensor.device}: {reason}"
            )
        return request
    return next(
        name
        for name in _by_preference(operator, tensor)
        if (name, tensor.device.type) != _ON_REQUEST_ONLY
        and _unavailable(name, operator, tensor) is None
    )


def _by_preference(operator: str, tensor: torch.Tensor) -> list[str]:
    measured = measured_choice(operator, tensor)
    return sorted(BACKENDS, key=lambda name: name != measured)


def measured_choice(operator: str, tensor: torch.Tensor) -> str | None:
    """The backend that is said to be the fastest on the card of `tensor`; None without a word."""
    if not tensor.is_cuda:
        return None
    capability = torch.cuda.get_device_capability(tensor.device)
    return table(path()).backend(operator, capability)


@overload
def choose(operator: Literal["sinkhorn"], tensor: torch.Tensor) -> Sinkhorn: ...
@overload
def choose(operator: Literal["prototype_scores"], tensor: torch.Tensor) -> PrototypeScores: ...
@overload
def choose(operator: Literal["weight_norm_scores"], tensor: torch.Tensor) -> WeightNormScores: ...
@overload
def choose(
    operator: Literal["clustering_cross_entropy"], tensor: torch.Tensor
) -> ClusteringCrossEntropy: ...
@overload
def choose(
    operator: Literal["streamed_clustering"], tensor: torch.Tensor
) -> StreamedClustering: ...
@overload
def choose(operator: Literal["varlen_attention"], tensor: torch.Tensor) -> VarlenAttention: ...
@overload
def choose(operator: Literal["swiglu"], tensor: torch.Tensor) -> SwiGLU: ...
@overload
def choose(operator: Literal["adamw_update"], tensor: torch.Tensor) -> AdamWUpdate: ...
def choose(operator: str, tensor: torch.Tensor) -> Any:
    """Returns the module that runs `operator` on tensors of the device and dtype of `tensor`.

    Raises:
        InputError: If the backend that was asked for cannot run it.
    """
    key = (operator, tensor.device.type, tensor.dtype)
    module = _choices.get(key)
    if module is None:
        package = _select(operator, tensor)
        module = importlib.import_module(f"{__package__}.{package}.{operator}")
        _choices[key] = module
    return module


class use_backend:
    """Asks for one backend, at once and, used as a context manager, until the block ends.

    The request holds for the operators that the backend offers, in all threads of the process (so
    that a backward pass run by another thread follows it too).

    Args:
        name: "cuda", "cpu", "triton", "torch", or "auto" for the automatic choice.

    Raises:
        InputError: If the name is unknown. A backend that is known but cannot run raises when an
            operator is called, where the tensors are known.

    Example:
        >>> import torch, franca_fast as ff
        >>> with ff.use_backend("torch"):
        ...     q = ff.ops.sinkhorn_knopp(torch.zeros(2, 3), temperature=0.1)
    """

    def __init__(self, name: str) -> None:
        self._previous = _requested
        _set_request(_check_name(name, "use_backend"))

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _set_request(self._previous)


def _set_request(name: str | None) -> None:
    global _requested
    _requested = name
    _choices.clear()


def backend_table() -> list[BackendRow]:
    """Which backends can run each operator here on float32 tensors, and which one does.

    Returns:
        One row for each operator, device at hand and backend that offers the operator.
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [
        row
        for operator in OPERATORS
        for device in devices
        for row in _rows(operator, torch.empty(0, device=device))
    ]


def _rows(operator: str, tensor: torch.Tensor) -> list[BackendRow]:
    try:
        selected = _select(operator, tensor)
    except InputError:
        selected = None
    asked = _request() != _AUTO
    rows = []
    for backend in BACKENDS:
        if not _offers(backend, operator):
            continue
        reason = _unavailable(backend, operator, tensor)
        chosen = backend == selected
        why = "asked for" if chosen and asked and _request() == backend else ""
        if chosen and not why and backend == measured_choice(operator, tensor):
            why = "the fastest on this card"
        rows.append(
            BackendRow(operator, tensor.device.type, backend, reason is None, chosen, reason or why)
        )
    return rows
