"""A GPU that computes nothing, so that code for one can be tested on a machine without.

Tensors on "cuda" are PyTorch's fake tensors, which have a shape, a dtype and a device but no
values; those of the host are real. All operators, forward and backward, of the optimizer too, pass
through `FakeGpu`, where these are errors:

- tensors of the host beside some of the GPU;
- what makes the host wait for the GPU: to read a value (`item`, `tolist`, `bool`, `cpu`, ...), to
  learn a shape that depends on values (a boolean mask, `nonzero`, `unique`, ...), or to copy from
  memory that is not page-locked. The places where a wait is meant stand in `WAITS`.

Our own operators run as on a GPU, on the "torch" backend, once for every form of arguments.

PyTorch's autograd engine does not start for a device that its build knows nothing of, and asks for
that once, while it is loaded. So the tests run in a process of their own, which first loads a small
library (fake_gpu.cpp) that answers for a GPU.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import franca_fast as ff

_PACKAGE = Path(ff.__file__).parent
_aten = torch.ops.aten


class Wait(NamedTuple):
    """Where the host may wait for the GPU.

    Attributes:
        reason: why it must.
        value: what it reads there.
    """

    reason: str
    value: float = 1.0


_DRAWN = "PyTorch's trunc_normal_ draws again until all values fit"
_BATCHES = "images come from the host, and figures of them go there, a batch at a time"
# "file: function" in franca_fast.
WAITS = {
    "evaluation/features.py: embed": Wait(_BATCHES),
    "evaluation/knn.py: knn_predict": Wait("the classes are counted once"),
    "hub/save.py: save_backbone": Wait("files are written from the host"),
    "models/nested_head.py: __init__": Wait(_DRAWN, 0.0),
    "models/vision_transformer.py: _init_weights": Wait(_DRAWN, 0.0),
    "rasa/features.py: batches": Wait("tokens may be more than a GPU can hold"),
    "rasa/features.py: check_finite": Wait("bad tokens are an error at once"),
    "rasa/features.py: open_features": Wait("tokens may be more than a GPU can hold"),
    "rasa/features.py: tokens_of": Wait(_BATCHES),
    "rasa/positions.py: __init__": Wait("moments of all tokens are read once"),
    "rasa/project.py: apply": Wait("the map is held on the host"),
    "rasa/readout.py: __init__": Wait("size and mean of a sample are read once"),
    "rasa/readout.py: _train": Wait("the error is read once an epoch, weights at the end", 0.01),
    "rasa/readout.py: error": Wait("the error is read once"),
    "training/checkpoint_writer.py: _copy": Wait("files are written from the host"),
    "training/metrics.py: to_numbers": Wait("results of steps are read at intervals"),
    "training/run.py: __init__": Wait("networks are built on the host"),
}


# Calls of our own operators whose implementation has run, and need not again.
_seen: set[str] = set()


class NeedlessWait(AssertionError):
    """The host waits for the GPU where it is not meant to."""


class MixedDevices(AssertionError):
    """An operator was given tensors of the host and of the GPU."""


class FakeGpu(TorchDispatchMode):
    """Runs what touches the GPU on fake tensors, and everything else as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._page_locked: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func is _aten._pin_memory.default:
            return self._lock(args[0])
        if func is _aten.is_pinned.default:
            return self._is_page_locked(args[0])
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        of_gpu = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if not of_gpu and target != "cuda":
            return func(*args, **kwargs)
        if func.namespace == "franca_fast":
            return self._run_ours(func, types, args, kwargs)
        if func is _aten._to_copy.default and (target == "cpu" or not of_gpu):
            return self._copy(func, args, kwargs, args[0], kwargs.get("non_blocking", False))
        if func is _aten.copy_.default and len(of_gpu) < len(tensors):
            return self._copy(func, args, kwargs, args[1], any(args[2:]))
        if len(of_gpu) < len(tensors):
            raise MixedDevices(f"{func} of {tensors} in {_line()}")
        try:
            return self._fake.__torch_dispatch__(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return self._read(func, args, kwargs)

    def _run_ours(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """What the fake of one of our operators gives; its implementation must give the same."""
        fake = self._fake.__torch_dispatch__(func, types, args, kwargs)
        call = f"{func} {_described(args)} {_described(kwargs)}"
        if call not in _seen:
            # Backward passes are not part of a graph and may differentiate by themselves.
            backward = func._schema.name.endswith("_backward")
            autograd = torch._C.DispatchKey.AutogradFunctionality
            implementation = torch._C.DispatchKey.CompositeExplicitAutograd
            with (
                self,
                torch._C._SetExcludeDispatchKeyGuard(autograd, False)
                if backward
                else nullcontext(),
            ):
                real = func._op_dk(implementation, *args, **kwargs)
            assert _described(real) == _described(fake), f"{func}: {real} instead of {fake}"
            _seen.add(call)
        return fake

    def _copy(self, func: Any, args: Any, kwargs: Any, source: Tensor, non_blocking: bool) -> Any:
        """A copy between host and GPU."""
        if isinstance(source, FakeTensor):
            return self._read(func, args, kwargs)
        if not (non_blocking and self._is_page_locked(source)):
            _wait(f"{func} of {tuple(source.shape)}, not non-blocking from page-locked memory,")
        if func is _aten.copy_.default:
            return args[0]
        return self._upload(source, kwargs.get("dtype"))

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator that reads the GPU on what is said to be read there."""
        value = _wait(str(func))
        args = tree_map_only(FakeTensor, lambda t: torch.full(t.shape, value, dtype=t.dtype), args)
        result = func(*args, **kwargs)
        if func in (_aten._to_copy.default, _aten.copy_.default):
            return result
        return tree_map_only(Tensor, self._upload, result)

    def _upload(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or tensor.dtype
        with self._fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="cuda:0")

    def _lock(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self._page_locked[copy.untyped_storage().data_ptr()] = copy
        return copy

    def _is_page_locked(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._page_locked


def _described(value: Any) -> str:
    """Arguments or results, by shapes, dtypes and devices of tensors."""
    described = tree_map_only(Tensor, lambda t: f"{t.dtype} {tuple(t.shape)} {t.device}", value)
    return str(tree_leaves(described))


def _wait(what: str) -> float:
    """The value that is read where the code stands now, if it may be read there."""
    place, line = _place()
    if place not in WAITS:
        raise NeedlessWait(f"{what} makes the host wait for the GPU in {line}")
    return WAITS[place].value


def _line() -> str:
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


class _Event:
    """A moment on the GPU."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 1.0

    def synchronize(self) -> None:
        _wait("Event.synchronize")


_PROPERTIES = SimpleNamespace(name="fake", total_memory=80 * 10**9, major=9, minor=0)
# What PyTorch and the package ask torch.cuda.
_ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda _: None,
    "get_device_properties": lambda *_: _PROPERTIES,
    "max_memory_allocated": lambda *_: 0,
    "get_rng_state_all": lambda: [],
    "synchronize": lambda *_: _wait("torch.cuda.synchronize"),
    "Event": _Event,
    "_lazy_init": lambda: None,
}


@contextmanager
def _pretended() -> Iterator[None]:
    lifts = torch._C._only_lift_cpu_tensors()
    # What is given as Python numbers is on the host before it is on the GPU.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with (
            mock.patch.multiple(torch.cuda, **_ANSWERS),
            # The engine's threads are started for the devices that there were at first.
            torch.autograd.set_multithreading_enabled(False),
            ff.use_backend("torch"),
            FakeGpu(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)


def _run(library: str, case: Callable[..., Any], *args: Any) -> Any:
    ctypes.CDLL(library).pretend_there_is_a_gpu()
    with _pretended():
        return case(*args)


def _build(folder: Path) -> Path:
    torch_folder = Path(torch.__file__).parent
    library = folder / "fake_gpu.so"
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-shared", "-fPIC"),
        str(Path(__file__).with_suffix(".cpp")),
        *("-o", str(library), f"-I{torch_folder / 'include'}"),
        *(f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}"),
        *("-ltorch_cpu", "-lc10"),
    ]
    subprocess.run(command, check=True)
    return library


@contextmanager
def process_with_fake_gpu(folder: Path) -> Iterator[Callable[..., Any]]:
    """A process of its own with a fake GPU.

    Yields:
        `run(case, *args)`, which calls a function of a module there, on the fake GPU; what it
        returns or raises comes back.
    """
    library = str(_build(folder))
    spawn = multiprocessing.get_context("spawn")
    # The library is there before the first import of torch.
    with ProcessPoolExecutor(1, spawn, initializer=ctypes.CDLL, initargs=(library,)) as pool:
        yield lambda case, *args: pool.submit(_run, library, case, *args).result()
