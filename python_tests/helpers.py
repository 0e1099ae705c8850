"""What several tests share: the device, definitions in float64, processes with ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from franca_fast.backends import registry

# Where the tests of the operators run; bench.gpu.tests asks for the GPU.
DEVICE = torch.device(os.environ.get("FRANCA_FAST_TEST_DEVICE", "cpu"))


def backends_of(operator: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Backends that run an operator on tensors of the device under test, sorted."""
    return sorted(registry.available(operator, torch.empty(0, dtype=dtype, device=DEVICE)))


def run_ranks(world_size: int, folder: Path, work: Callable[..., None], *args: Any) -> None:
    """Runs `work(rank, *args)` in `world_size` processes with a gloo group.

    Args:
        world_size: number of processes.
        folder: where they meet; one that is used for nothing else of this name.
        work: a function of a module; what it wants to return it writes to a file.
        args: given to it.

    Raises:
        ProcessRaisedException: with the traceback of the first process that failed.
    """
    mp.spawn(_run_rank, (world_size, str(folder / "ranks"), work, args), nprocs=world_size)


def _run_rank(
    rank: int, world_size: int, path: str, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    store = dist.FileStore(path, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    work(rank, *args)
    dist.barrier()
    dist.destroy_process_group()
    # Leaves without taking the interpreter apart: gloo's threads may still let go of Python's
    # objects, and a thread that asks for the interpreter then ends the process by SIGABRT.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def heads(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """The five nested heads `prefix.0` .. `prefix.4` of the golden values."""
    return [tensors[f"{prefix}.{i}"] for i in range(5)]


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that a call holds at a time beyond what there was, by PyTorch's allocator."""
    call()  # the first call of an operator also loads what it needs
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del result
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def sinkhorn_float64(z: Tensor, temperature: float, n_iterations: int = 3) -> Tensor:
    """Assignments by alternating log-space normalisation in float64."""
    log_q = z.double() / temperature
    for _ in range(n_iterations):
        log_q = log_q - torch.logsumexp(log_q, dim=0, keepdim=True)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def cross_entropy_float64(
    student: Tensor, assignments: Tensor, rows: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """sum_m w[m] sum_p -sum_k Q[rows[m, p], k] log softmax(s[m] / t)[k]."""
    log_p = torch.log_softmax(student.double() / temperature, dim=1)
    pairs = -(assignments.double()[rows] * log_p.unsqueeze(1)).sum(dim=(1, 2))
    return (weights.double() * pairs).sum()


def attention_float64(q: Tensor, k: Tensor, v: Tensor, seqlens: list[int]) -> Tensor:
    """Plain softmax attention, sequence by sequence."""
    outputs, start = [], 0
    for length in seqlens:
        a, b, c = (x[start : start + length].double().transpose(0, 1) for x in (q, k, v))
        weights = torch.softmax(a @ b.transpose(1, 2) * q.shape[2] ** -0.5, dim=-1)
        outputs.append((weights @ c).transpose(0, 1))
        start += length
    return torch.cat(outputs)
