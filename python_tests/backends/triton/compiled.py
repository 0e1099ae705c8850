"""Every Triton kernel compiles for NVIDIA GPUs, here without one; run by test_triton.py.

The drivers run on tensors without data while the launches are recorded, so that what is compiled
is what a GPU would be asked to run at the sizes of the paper.
"""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from franca_fast.backends.contracts import (
    AdamWProblem,
    AttentionProblem,
    ClusteringProblem,
    Scores,
)
from franca_fast.backends.triton import (
    adamw_update,
    clustering_cross_entropy,
    sinkhorn,
    streamed_clustering,
    swiglu,
    varlen_attention,
    weight_norm_scores,
)

COLUMNS = (8192, 16384, 32768, 65536, 131072)
BOTTLENECK = 384
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def stored(n_rows, dtype):
    return Scores([empty(n_rows, k, dtype=dtype) for k in COLUMNS])


def streamed(n_rows, dtype):
    return Scores(
        [empty(n_rows, BOTTLENECK, dtype=dtype) for _ in COLUMNS],
        [empty(k, BOTTLENECK, dtype=dtype) for k in COLUMNS],
        [empty(k) for k in COLUMNS],
    )


def problem(student, teacher):
    """A problem in which each student row meets two teacher rows."""
    potentials = empty(sum(COLUMNS)), empty(len(COLUMNS), teacher.n_rows)
    rows = empty(student.n_rows, 2, dtype=torch.int64)
    return ClusteringProblem(student, teacher, *potentials, 0.1, 0.05, rows, empty(student.n_rows))


def run_sinkhorn(n_rows, dtype):
    z = stored(n_rows, dtype)
    maximum, _ = sinkhorn.column_logsumexp(z, 0.05, n_rows)
    sinkhorn.row_step(z, 0.05, maximum, n_rows, True)
    sinkhorn.assignments(z, 0.05, maximum, n_rows)
    sinkhorn.potentials(z, 0.05, 3, n_rows)
    sinkhorn.potentials(stored(64, dtype), 0.05, 3, 64)


def run_cross_entropy(n_rows, dtype):
    given = problem(stored(n_rows, dtype), stored(3072, dtype))
    loss, lse = clustering_cross_entropy.forward(given)
    clustering_cross_entropy.backward(given, loss, lse)


def run_streamed(n_rows, dtype):
    given = problem(streamed(n_rows, dtype), streamed(3072, dtype))
    maximum, _ = streamed_clustering.column_logsumexp(given.student, 0.05, n_rows)
    streamed_clustering.row_step(given.student, 0.05, maximum, n_rows, True)
    loss, lse = streamed_clustering.forward(given)
    streamed_clustering.backward(given, loss, lse)


def run_attention(n_rows, dtype):
    low = torch.float16 if dtype == torch.float32 else dtype  # float32 is PyTorch's
    qkv = empty(n_rows, 3, 16, 64, dtype=low)
    given = AttentionProblem(*qkv.unbind(1), [257, 257, n_rows - 514], 0.125)
    out, lse = varlen_attention.forward(given)
    varlen_attention.backward(given, out, out, lse, empty(*qkv.shape, dtype=low).unbind(1))


def run_weight_norm(n_rows, dtype):
    v, g = empty(COLUMNS[-1], BOTTLENECK), empty(COLUMNS[-1])
    w = weight_norm_scores.normalized(v, g, dtype)
    weight_norm_scores.gradients(w, None, v, g)


def run_swiglu(n_rows, dtype):
    h = empty(n_rows, 2 * 2736, dtype=dtype)
    swiglu.backward(swiglu.forward(h), h)


def run_adamw(n_rows, dtype):
    lists = [[empty(n_rows, 64), empty(7)] for _ in range(5)]
    finite = empty(dtype=torch.bool)
    given = AdamWProblem(
        *(*lists[:4], [empty(), empty()], lists[4], [0.1, 0.2], [0.0, 0.4], [0, 1], empty(2)),
        *(0.9, 0.999, 1e-8, 0.99, finite),
    )
    adamw_update.update(given)


# Each with the number of kernels that it launches.
DRIVERS = {
    "sinkhorn": (run_sinkhorn, 9),
    "clustering_cross_entropy": (run_cross_entropy, 3),
    "streamed_clustering": (run_streamed, 7),
    "varlen_attention": (run_attention, 3),
    "weight_norm_scores": (run_weight_norm, 2),
    "swiglu": (run_swiglu, 2),
    "adamw_update": (run_adamw, 1),
}
TARGETS = [("bf16", 80), ("bf16", 90), ("fp32", 90)]

# Releases of Triton differ by a register or two; spilled tiles are hundreds of bytes.
SPILLED_BYTES = 16

Launch = tuple[JITFunction, dict[str, Any], dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def _private_cache(tmp_path_factory):
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def recorded_launches(driver, *arguments) -> dict[str, Launch]:
    """Kernel, arguments and options of the first launch of each kernel."""
    launches: dict[str, Launch] = {}

    def record(kernel, *args, grid, warmup, **kwargs):
        assert all(0 < size < 2**16 for size in grid[1:]) and 0 < grid[0] < 2**31
        constants = {name: kwargs.pop(name) for name in list(kwargs) if name in kernel.arg_names}
        bound = inspect.signature(kernel.fn).bind(*args, **constants)
        launches.setdefault(kernel.fn.__name__, (kernel, bound.arguments, kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        driver(*arguments)
    return launches


def kind(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(kind(entry) for entry in value)
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def aligned(value: Any, path: tuple[int, ...]) -> dict[tuple[int, ...], list]:
    """What Triton itself finds out about pointers and integers that 16 divides."""
    if isinstance(value, tuple):
        return {
            key: attribute
            for i, entry in enumerate(value)
            for key, attribute in aligned(entry, (*path, i)).items()
        }
    divisible = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
    return {path: [["tt.divisibility", 16]]} if divisible else {}


def compiled(launch: Launch, capability: int) -> Any:
    kernel, arguments, options = launch
    signature, attributes, constants = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = kind(value)
        if not parameter.do_not_specialize:
            attributes.update(aligned(value, (i,)))
    source = ASTSource(kernel, signature, constants, attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack (where spilled registers go) and shared memory, from the binary itself."""
    (folder / "kernel.cubin").write_bytes(cubin)
    report = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "kernel.cubin"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", report)}


@functools.cache
def binaries(operator: str, dtype: str, capability: int) -> dict[str, Any]:
    """The compiled kernels of an operator, by name."""
    driver, n_kernels = DRIVERS[operator]
    launches = recorded_launches(driver, 3072, DTYPES[dtype])
    assert len(launches) == n_kernels
    return {name: compiled(launch, capability) for name, launch in launches.items()}


@pytest.mark.parametrize(("dtype", "capability"), TARGETS)
@pytest.mark.parametrize("operator", DRIVERS)
def test_kernels_compile_without_spills(operator, dtype, capability, tmp_path):
    for name, binary in binaries(operator, dtype, capability).items():
        used = resources(binary.asm["cubin"], tmp_path)
        assert used["STACK"] <= SPILLED_BYTES, f"{name}: {used}"


@pytest.mark.parametrize(("dtype", "capability"), TARGETS)
@pytest.mark.parametrize("operator", DRIVERS)
def test_kernels_fit_shared_memory(operator, dtype, capability):
    limit = {80: 163, 90: 227}[capability] * 1024
    used = {name: b.metadata.shared for name, b in binaries(operator, dtype, capability).items()}
    assert max(used.values()) <= limit, used


@pytest.mark.parametrize(("dtype", "capability"), TARGETS)
@pytest.mark.parametrize(
    "operator", ["sinkhorn", "clustering_cross_entropy", "swiglu", "adamw_update"]
)
def test_logits_are_read_sixteen_bytes_at_a_time(operator, dtype, capability):
    for name, binary in binaries(operator, dtype, capability).items():
        if not name.startswith("_combine"):
            assert re.search(r"ld\.global[\w:.]*\.v4\.b32", binary.asm["ptx"]), name


@pytest.mark.parametrize(("capability", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async")])
def test_products_run_on_tensor_cores(capability, instruction):
    for name, binary in binaries("streamed_clustering", "bf16", capability).items():
        if not name.startswith("_combine"):
            assert instruction in binary.asm["ptx"], name
