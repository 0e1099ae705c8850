"""The processes of a run: who they are, what they agree on, and how they part.

One process needs none of this and uses no process group; torchrun sets RANK, WORLD_SIZE and
LOCAL_RANK for several.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from franca_fast.errors import FrancaError, InputError

_T = TypeVar("_T")

# An evaluation on one rank may take long; the others wait for it without a collective.
_LONGEST_PAUSE = timedelta(days=2)


class LostRank(FrancaError):
    """Another process of the run has gone or answers no more."""


class World:
    """The ranks of a run.

    Args:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.

    Attributes:
        group: of all ranks, for the operators' `group=`; None for one process.
    """

    group: dist.ProcessGroup | None

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, *, owns_group: bool = False
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.group = dist.group.WORLD if size > 1 else None
        self._owns_group = owns_group
        self._pauses = 0

    @classmethod
    def join(cls, device: str, timeout_minutes: float) -> World:
        """Meets the other processes that torchrun started; alone without torchrun.

        A process group that the caller has made is used, and left to the caller.

        Args:
            device: "cpu" uses gloo; otherwise tensors on GPUs use NCCL, and those on CPUs gloo.
            timeout_minutes: how long a collective waits for a rank that does not answer.

        Raises:
            InputError: variables of torchrun that do not fit together.
            LostRank: the others did not come.
        """
        if dist.is_initialized():
            rank = dist.get_rank()
            return cls(rank, dist.get_world_size(), _environment("LOCAL_RANK", rank))
        rank, size, local_rank = (
            _environment(name, default)
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        if not 0 <= rank < size:
            raise InputError(f"RANK: {rank}; accepted: 0 to WORLD_SIZE - 1 = {size - 1}")
        if size > 1:
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            timeout = timedelta(minutes=timeout_minutes)
            # torchrun may keep one store for all its restarts; what a killed process left in it
            # must not be taken for news.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            try:
                store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
                store = dist.PrefixStore(f"franca_fast/{attempt}", store)
                dist.init_process_group(
                    backend, store=store, timeout=timeout, rank=rank, world_size=size
                )
            except (RuntimeError, ValueError) as error:
                raise LostRank(f"rank {rank} of {size} cannot meet the others: {error}") from error
        return cls(rank, size, local_rank, owns_group=size > 1)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error that a user can mend, on any rank within the block, is raised on all ranks.

        The block must contain no collective operation of its own.
        """
        own: FrancaError | None = None
        try:
            yield
        except FrancaError as error:
            own = error
        errors = self.all_gather_object(own)
        if own is not None:
            raise own
        for rank, other in enumerate(errors):
            if other is not None:
                raise type(other)(f"rank {rank}: {other}")

    def all_gather_object(self, value: _T) -> list[_T]:
        """The values of all ranks, plain objects, in the order of the ranks."""
        if self.group is None:
            return [value]
        gathered: list[_T | None] = [None] * self.size
        with self.watch():
            dist.all_gather_object(gathered, value, group=self.group)
        return gathered  # type: ignore[return-value]

    def on_first(self, function: Callable[[], _T]) -> _T:
        """Calls a function on rank 0 while the others wait, however long it takes.

        Returns:
            on rank 0 what it returned; on the others the same, sent as a plain object.

        Raises:
            FrancaError: on all ranks, when the function raised it.
        """
        value: _T | FrancaError | None = None
        if self.is_first:
            try:
                value = function()
            except FrancaError as error:
                if self.group is None:
                    raise
                value = error
        self._pause()
        value = self.all_gather_object(value)[0]
        if isinstance(value, FrancaError):
            raise value
        return value  # type: ignore[return-value]

    def all_reduce(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over all ranks; on the CPU, so that no GPU is waited for."""
        if self.group is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.watch():
            dist.all_reduce(total, group=self.group)
        return total.tolist()

    def all_gather(self, values: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, a row for each."""
        if self.group is None:
            return [list(values)]
        rows = [torch.zeros(len(values), dtype=torch.float64) for _ in range(self.size)]
        with self.watch():
            dist.all_gather(rows, torch.tensor(values, dtype=torch.float64), group=self.group)
        return [row.tolist() for row in rows]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Gives all ranks the values that rank 0 has."""
        if self.group is not None:
            with self.watch():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0, group=self.group)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Turns the failure of a collective operation within the block into `LostRank`."""
        try:
            yield
        except RuntimeError as error:
            if self.group is None or not _is_broken_connection(error):
                raise
            raise LostRank(
                f"rank {self.rank} of {self.size} lost another rank, which was killed or stopped "
                f"answering ({' '.join(str(error).split())[:200]})"
            ) from error

    def close(self) -> None:
        """Takes a process group that `join` made apart; it must not be used any more.

        Whoever holds a reference to a group keeps its threads alive, and a thread that meets an
        interpreter which is ending would abort the process. So the caller drops the networks and
        the optimizer first; what still points at them in circles is collected here.
        """
        if self.group is None:
            return
        self.group = None
        gc.collect()
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()

    def _pause(self) -> None:
        """Waits for rank 0 at the store, which has no limit of the kind that collectives have."""
        if self.group is None:
            return
        store = dist.distributed_c10d._get_default_store()
        self._pauses += 1
        key = f"franca_fast/pause/{self._pauses}"
        if self.is_first:
            store.set(key, "over")
        else:
            with self.watch():
                store.wait([key], _LONGEST_PAUSE)


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}: '{text}' in the environment; accepted: a whole number")
    return int(text)


def _is_broken_connection(error: RuntimeError) -> bool:
    """Whether a backend reports that a peer has gone; other errors are mistakes of ours."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(
        word in text for word in ("connection", "timed out", "timeout", "socket", "peer", "gloo")
    )
