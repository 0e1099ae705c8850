"""A GPU that computes nothing, so that code for one can be tested on a machine without.

Tensors on "cuda" are PyTorch's fake tensors, which have a shape, a dtype and a device but no
values; those of the host are real. All operators, forward and backward, of the optimizer too, pass
through `FakeGpu`, where these are errors:

- tensors of the host beside some of the GPU;
- what makes the host wait for the GPU: to read a value (`item`, `tolist`, `bool`, `cpu`, `print`,
  ...), to learn a shape that depends on values (a boolean mask, `nonzero`, `unique`, ...), to copy
  from memory that is not page-locked, or inside an operator (`torch.linalg.eigh`, ...). The places
  where a wait is meant stand in `WAITS`, and tests hold how often the host waits in each (see
  fake_gpu_waits.py).

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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves, tree_map_only

import franca_fast as ff
from python_tests.fake_gpu_waits import counts, here, is_mask, wait, waits_inside

_aten = torch.ops.aten


_INDEX_PUT = (_aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index_put)
# Calls of our own operators whose implementation has run, and need not again.
_seen: set[str] = set()


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
        if len(of_gpu) == len(tensors) - 1 and _assigns_a_number(func, args):
            return self._assign(func, types, args)
        if len(of_gpu) < len(tensors):
            raise MixedDevices(f"{func} of {_described(tensors)} in {here()}")
        if waits_inside(func, args, kwargs):
            wait(str(func))
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
            assert _described(real) == _described(fake), f"{func}: {_described(real)}"
            _seen.add(call)
        return fake

    def _assign(self, func: Any, types: Any, args: Any) -> Any:
        """`x[...] = number` of the host, which is part of the call unless there are indices."""
        indices = args[1] if func.overloadpacket in _INDEX_PUT else ()
        if [is_mask(index) for index in indices if index is not None] not in ([], [True]):
            wait(f"{func} of a number of the host")
        if func._schema.is_mutable:
            return args[0]
        return self._fake.__torch_dispatch__(_aten.clone.default, types, args[:1])

    def _copy(self, func: Any, args: Any, kwargs: Any, source: Tensor, non_blocking: bool) -> Any:
        """A copy between host and GPU."""
        if isinstance(source, FakeTensor):
            return self._read(func, args, kwargs)
        if not (non_blocking and self._is_page_locked(source)):
            wait(f"{func} of {tuple(source.shape)}, not non-blocking from page-locked memory,")
        if func is _aten.copy_.default:
            return args[0]
        return self._upload(source, kwargs.get("dtype"))

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator that reads the GPU on what is said to be read there."""
        value = wait(str(func))
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


def _assigns_a_number(func: Any, args: Any) -> bool:
    """Whether a number of the host, which is a tensor there, is what is assigned."""
    if func.overloadpacket in _INDEX_PUT:
        value = args[2]
    elif func is _aten.fill_.Tensor:
        value = args[1]
    else:
        return False
    return not isinstance(value, FakeTensor) and value.numel() == 1


def _described(value: Any) -> str:
    """Arguments or results, by shapes, dtypes and devices of tensors."""
    described = tree_map_only(Tensor, lambda t: f"{t.dtype} {tuple(t.shape)} {t.device}", value)
    return str(tree_leaves(described))


def _shown(tensor: Tensor, form: str = "", **_: Any) -> str:
    """`repr` and `format`, which read values; but PyTorch uses them in its own fakes."""
    if not any(isinstance(mode, FakeGpu) for mode in _get_current_dispatch_mode_stack()):
        return _described(tensor)
    with torch.device("cpu"):
        read = torch.full(tensor.shape, wait("showing a tensor"), dtype=tensor.dtype)
        return format(read, form) if form else repr(read)


def _listed(tensor: Tensor) -> Any:
    """`tolist`, which waits once and not for every number."""
    with torch.device("cpu"):
        return torch.full(tensor.shape, wait("tolist"), dtype=tensor.dtype).tolist()


def _backward(outputs: Any, gradients: Any, *args: Any, **kwargs: Any) -> Any:
    """Starts the engine, which asks real tensors only for gradients on the devices of outputs."""
    for output, gradient in zip(outputs, gradients, strict=True):
        if gradient is not None and gradient.device != output.device and gradient.dim() > 0:
            raise MixedDevices(f"gradient {_described(gradient)} in {here()}")
    return _start_engine(outputs, gradients, *args, **kwargs)


_start_engine = torch.autograd.graph._engine_run_backward


class _Event:
    """A moment on the GPU."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 1.0

    def synchronize(self) -> None:
        wait("Event.synchronize")


class _Stream:
    """The only queue of work."""

    cuda_stream = 0

    def synchronize(self) -> None:
        wait("Stream.synchronize")


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
    "synchronize": lambda *_: wait("torch.cuda.synchronize"),
    "empty_cache": lambda: wait("torch.cuda.empty_cache"),
    "current_stream": lambda *_: _Stream(),
    "default_stream": lambda *_: _Stream(),
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
            mock.patch.multiple(FakeTensor, __repr__=_shown, __format__=_shown, tolist=_listed),
            mock.patch.object(torch.autograd, "_engine_run_backward", _backward),
            # The engine's threads are started for the devices that there were at first.
            torch.autograd.set_multithreading_enabled(False),
            ff.use_backend("torch"),
            FakeGpu(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)


def _run(library: str, case: Callable[..., Any], *args: Any) -> dict[str, int]:
    ctypes.CDLL(library).pretend_there_is_a_gpu()
    counts.clear()
    with _pretended():
        case(*args)
    return dict(counts)


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
        `run(case, *args)`, which calls a function of a module there, on the fake GPU; it gives how
        often the host waited in each of `WAITS`, or raises what the function raises.
    """
    library = str(_build(folder))
    spawn = multiprocessing.get_context("spawn")
    # The library is there before the first import of torch.
    with ProcessPoolExecutor(1, spawn, initializer=ctypes.CDLL, initargs=(library,)) as pool:
        yield lambda case, *args: pool.submit(_run, library, case, *args).result()
