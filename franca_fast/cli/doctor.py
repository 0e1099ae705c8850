"""Show what is installed, and what every operator will run on and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from franca_fast.cli.common import table

if TYPE_CHECKING:
    from franca_fast.backends import BackendRow

GROUP = "machine"
_REQUIRED = ("torch", "numpy", "pillow", "safetensors", "webdataset", "omegaconf", "tqdm")
_OPTIONAL = {
    "tensorboard": "curves of the pretraining",
    "pyarrow": ".parquet files of features",
    "matplotlib": "pictures",
    "triton": "torch.compile on GPUs",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no options."""


def run(args: argparse.Namespace) -> int:
    import franca_fast
    from franca_fast.cores import share_cores
    from franca_fast.training import precision, score_memory

    print(f"franca-fast {franca_fast.__version__}, Python {platform.python_version()}")
    print(f"system      {platform.platform()}")
    for line in _hardware():
        print(line)
    print(f"precision   {precision.describe_choice()}")
    print(f"scores      {score_memory.describe_choice()}")
    with share_cores() as shared:
        print(f"busy cores  {shared.how}")
    print("\nPackages")
    print(table(["name", "version", ""], list(_packages())))
    print("\nOperators (float32; * marks what runs)")
    print(table(["operator", "device", "backend", "", "why"], _operators()))
    print("\nFastest kernels by compute capability (FRANCA_FAST_CHOICES names another table)")
    print("\n".join(_choices()))
    return 0


def _hardware() -> Iterator[str]:
    import torch

    yield f"processor   {_processor()}, {_usable_cores()} cores usable"
    yield (
        f"torch CPU   {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads (OMP_NUM_THREADS sets them)"
    )
    yield f"core        {_compiled_core()}"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield f"GPU         none{f' (torch is built for CUDA {built})' if built else ''}"
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield (
            f"GPU {index}       {device.name}, {device.total_memory / 2**30:.0f} GiB, "
            f"compute capability {device.major}.{device.minor}, CUDA {torch.version.cuda}"
        )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _compiled_core() -> str:
    try:
        from franca_fast import _C
    except ImportError as error:
        return f"not installed ({error}); operators run on the torch backend"
    parts = (f"{_C.cpu_isa()} kernels", "OpenMP" if _C.has_openmp else "one thread")
    return f"compiled: {', '.join(parts)}, {'CUDA' if _C.has_cuda else 'no CUDA'}"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux, where a process may be confined to some cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _packages() -> Iterator[Sequence[str]]:
    for name in (*_REQUIRED, *_OPTIONAL):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "absent"
        yield (name, version, f"optional: {_OPTIONAL[name]}" if name in _OPTIONAL else "")


def _operators() -> list[Sequence[str]]:
    from franca_fast.backends import backend_table

    return [
        (row.operator, row.device, row.backend, "*" if row.chosen else "", row.reason or _why(row))
        for row in backend_table()
    ]


def _choices() -> Iterator[str]:
    from franca_fast.backends import choices

    known = choices.table(choices.path())
    for name in known.capabilities():
        card = choices.version(name)
        yield f"{name}  {known.describe(card)}"
        yield f"     {known.origin_of(card)}"


def _why(row: BackendRow) -> str:
    if row.chosen:
        return "the first that can run"
    return f"can run, when asked for: use_backend('{row.backend}') or FRANCA_FAST_BACKEND"
