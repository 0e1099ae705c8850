"""Waits of the host for the GPU: what makes it wait, where it may, and how often it did."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import franca_fast as ff

_PACKAGE = Path(ff.__file__).parent


class Wait(NamedTuple):
    """Where the host may wait for the GPU.

    Attributes:
        reason: why it must.
        value: what it reads there.
        counted: whether tests know how often it does.
    """

    reason: str
    value: float = 1.0
    counted: bool = True


# How often depends on the version of PyTorch and on the network.
_DRAWN = Wait("PyTorch's trunc_normal_ draws again until all values fit", 0.0, counted=False)
_BATCHES = "images come from the host, and figures of them go there, a batch at a time"
# "file: function" in franca_fast.
WAITS = {
    "evaluation/features.py: embed": Wait(_BATCHES),
    "evaluation/image/knn.py: knn_predict": Wait("the classes are counted once"),
    "hub/save.py: save_backbone": Wait("files are written from the host"),
    "models/nested_head.py: __init__": _DRAWN,
    "models/vision_transformer.py: _init_weights": _DRAWN,
    "rasa/patch_tokens.py: batches": Wait("tokens may be more than a GPU can hold"),
    "rasa/patch_tokens.py: check_finite": Wait("bad tokens are an error at once"),
    "rasa/patch_tokens.py: open_features": Wait("tokens may be more than a GPU can hold"),
    "rasa/patch_tokens.py: tokens_of": Wait(_BATCHES),
    "rasa/positions.py: __init__": Wait("moments of all tokens are read once"),
    "hub/projector.py: apply": Wait("the map is held on the host"),
    "rasa/readout.py: __init__": Wait("size and mean of a sample are read once"),
    "rasa/readout.py: _train": Wait("the error is read once an epoch, weights at the end", 0.01),
    "rasa/readout.py: error": Wait("the error is read once"),
    "rasa/report.py: position_report": Wait("tokens of the pictured images are read once"),
    "training/checkpoints/writer.py: _copy": Wait("files are written from the host"),
    "training/reporting/metrics.py: to_numbers": Wait("results of steps are read at intervals"),
    "training/run.py: __init__": Wait("networks are built on the host"),
}

# How often the host has waited in each place.
counts: Counter[str] = Counter()


class NeedlessWait(AssertionError):
    """The host waits for the GPU where it is not meant to."""


def wait(what: str) -> float:
    """Counts a wait; the value that is read where the code stands, if it may be read there."""
    place, line = _place()
    if place not in WAITS:
        raise NeedlessWait(f"{what} makes the host wait for the GPU in {line}")
    if WAITS[place].counted:
        counts[place] += 1
    return WAITS[place].value


def here() -> str:
    """Where the code stands in franca_fast, with its line."""
    return _place()[1]


def _place() -> tuple[str, str]:
    """Where the code stands in franca_fast, as in `WAITS` and with its line."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if file.is_relative_to(_PACKAGE) and not name.startswith("<"):
            place = f"{file.relative_to(_PACKAGE)}: {name}"
            return place, f"{place}, line {frame.f_lineno}"
        frame = frame.f_back
    return "a test", "a test"


def waits_inside(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator waits for the GPU though its fake does not say so."""
    condition = _condition(func)
    if condition is None:
        return False
    arguments = func._schema.arguments
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in arguments), args, strict=False))
    return condition(given | kwargs)


def is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


_Condition = Callable[[dict[str, Any]], bool]


@functools.cache
def _condition(func: Any) -> _Condition | None:
    if any(argument.name == "check_errors" for argument in func._schema.arguments):
        return lambda given: given["check_errors"]
    packet = func.overloadpacket.__name__
    return _WAITING.get(packet) or _WAITING.get(f"{packet}.{func._overloadname}")


def _always(given: dict[str, Any]) -> bool:
    return True


def _masked(given: dict[str, Any]) -> bool:
    """Whether places to write to are given by a mask, whose ones are counted first."""
    return any(is_mask(index) for index in given["indices"])


def _from_the_gpu(given: dict[str, Any]) -> bool:
    """Whether the value that is filled in is read first."""
    return isinstance(given["value"], FakeTensor)


# Operators of PyTorch that wait in their code for GPUs, and with what arguments.
_WAITING: dict[str, _Condition] = {
    "_linalg_check_errors": _always,
    "_linalg_eigh": _always,
    "_linalg_svd": _always,
    "cholesky": _always,
    "linalg_eig": _always,
    "linalg_eigvals": _always,
    "linalg_matrix_exp": _always,
    "linalg_pinv": _always,
    # Without a range, that of the values is read.
    "histc": lambda given: given["min"] == given["max"],
    # Weights are looked at when nothing is drawn twice.
    "multinomial": lambda given: given["num_samples"] == 1 or not given["replacement"],
    "normal.Tensor_Tensor": _always,
    "normal.float_Tensor": _always,
    "index_fill.int_Tensor": _from_the_gpu,
    "index_fill_.int_Tensor": _from_the_gpu,
    "masked_fill.Tensor": _from_the_gpu,
    "masked_fill_.Tensor": _from_the_gpu,
    "_index_put_impl_": _masked,
    "_unsafe_index_put": _masked,
    "index_put": _masked,
    "index_put_": _masked,
}
