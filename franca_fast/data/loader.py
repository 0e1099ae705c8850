"""The training loader: endless batches from any number of workers, with an exact position.

The main process walks the sequence of samples (`stream.py`) and sends each worker the places of
all samples of a batch; the worker reads, decodes, crops and collates (`batch.py`). Workers have no
state, so the position after a batch is known here, whatever was prepared ahead.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader

from franca_fast.data.accounting import BadRate, BadSample, ImageAccount, SkipCounter
from franca_fast.data.batch import Batch, BatchMaker, BatchPlan, MadeBatch
from franca_fast.data.decoding import MAX_IMAGE_PIXELS, DecodeSettings
from franca_fast.data.settings import CropSettings, MaskSettings
from franca_fast.data.sources import open_source
from franca_fast.data.stream import Draw, Position, SampleStream
from franca_fast.errors import FrancaError, InputError

logger = logging.getLogger(__name__)

_SPARES = 64  # tried in place of a bad sample, before a batch counts as not to be had
_VERSION = 1


class TrainLoader(Iterator[Batch]):
    """Endless batches for pretraining; made by `build_train_loader`.

    Attributes:
        account: what has become of the images since the start, or since a position was loaded. In
            each epoch they are found anew, and are all used, skipped or left out when the last one
            of the shards opened has been drawn. The first rank counts what is known of shards,
            each rank the images that it draws.
    """

    def __init__(
        self,
        stream: SampleStream,
        plan: BatchPlan,
        *,
        num_workers: int,
        device: torch.device | None,
        bad_rate: BadRate,
    ) -> None:
        self.account = ImageAccount()
        self._stream, self._plan = stream, plan
        self._num_workers, self._device = num_workers, device
        self._bad_rate = bad_rate
        self._position = stream.position
        self._ahead: deque[tuple[Draw, Position]] = deque()
        self._lost_shares: dict[str, float] = {}  # of each damaged shard
        self._batches: Iterator[MadeBatch] | None = None
        self._end_workers: Finalize | None = None

    @property
    def skipped(self) -> SkipCounter:
        """What was skipped so far, by reason."""
        return self.account.skipped

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            InputError: too many bad samples.
            FrancaError: a worker process died.
        """
        if self._batches is None:
            self._start()
        assert self._batches is not None
        try:
            made = next(self._batches)
        except BaseException as error:
            self.close()  # what was prepared is out of step now; it is made again if need be
            if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
                reason = str(error).splitlines()[0]
                raise FrancaError(
                    f"a data worker died ({reason}); if memory ran out, use fewer workers"
                ) from None
            raise
        draw, position = self._ahead.popleft()
        account = self._count(draw, made)
        self._position = position
        if self._device is not None:
            made.batch = made.batch.to(self._device, non_blocking=True)
        batch = made.finish(self._plan.crops)
        return replace(batch, skipped=dict(account.skipped), account=account)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch returned; plain numbers and strings.

        The position is the same on all ranks, and holds for any number of ranks and workers;
        what was skipped is this rank's.
        """
        return {
            "version": _VERSION,
            "seed": self._plan.seed,
            "position": self._position.to_dict(),
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a position that `state_dict` gave.

        Raises:
            InputError: the state is not one of this loader, or of another seed.
        """
        if not isinstance(state, dict) or state.get("version") != _VERSION:
            given = state.get("version") if isinstance(state, dict) else state
            raise InputError(f"state of the data loader: version {given!r}; accepted: {_VERSION}")
        if state.get("seed") != self._plan.seed:
            raise InputError(
                f"state of the data loader: seed {state.get('seed')}; "
                f"accepted: the loader's, {self._plan.seed}"
            )
        position = Position.from_dict(state.get("position"))
        self.close()
        self._position = position
        self.account = ImageAccount()
        self.account.update({"skipped": state.get("skipped", {})})

    def close(self) -> None:
        """Ends the workers; the next batch would start them again, from the same position."""
        self._batches = None  # torch asks its workers to end
        if self._end_workers is not None:
            self._end_workers()  # and those that do not are killed
            self._end_workers = None
        self._ahead.clear()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """Starts the workers and goes to the position."""
        self._stream.seek(self._position)
        loader = DataLoader(
            BatchMaker(self._plan),
            sampler=_Draws(self._draws),
            batch_size=None,
            num_workers=self._num_workers,
            worker_init_fn=_leave_signals_to_the_main_process,
            pin_memory=self._device is not None and self._device.type == "cuda",
            generator=torch.Generator(),  # else torch would draw from the global one
        )
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD)
        self._batches = iter(loader)
        if in_main_thread and handler is not None:
            # torch's own would raise in the middle of a training step when a worker dies; without
            # it the death is noticed when the next batch is asked for.
            signal.signal(signal.SIGCHLD, handler)
        started = list(getattr(self._batches, "_workers", []))
        # Runs when this object goes, and before multiprocessing waits for children at exit.
        self._end_workers = Finalize(self, _kill, (started,), exitpriority=0)

    def _draws(self) -> Iterator[Draw]:
        plan = self._plan
        while True:
            draw = self._stream.take(plan.whole_batch_size, plan.rank, plan.world_size, _SPARES)
            self._ahead.append((draw, self._stream.position))
            yield draw

    def _count(self, draw: Draw, made: MadeBatch) -> ImageAccount:
        """Counts what was skipped and stops the run when it is too much.

        All ranks see the damage of all shards, so that all of them stop at the same batch, but
        only the first one counts it; of the images, each rank counts its own.
        """
        account = ImageAccount(used=len(draw.refs) - len(made.bad))
        if self._plan.rank == 0:
            for opened in draw.opened:
                account.open(opened)
        account.add(made.bad, made.remarks)
        self.account.update(account.as_dict())
        self._bad_rate.add(len(made.batch.keys), made.bad, enough=not made.unfilled)
        self._check_shards([bad for opened in draw.opened for bad in opened.skipped])
        return account

    def _check_shards(self, damage: list[BadSample]) -> None:
        # By place, because the same shard is met again in the next epoch.
        self._lost_shares.update((bad.location, bad.count / bad.of) for bad in damage)
        lost, shards = sum(self._lost_shares.values()), len(self._stream.source.shards)
        if damage and lost > max(1, self._bad_rate.most * shards):
            raise InputError(
                f"{lost:.3g} of {shards} shards cannot be read, more than "
                f"{self._bad_rate.most:.0%}; the last is {damage[-1]}"
            )


class _Draws(torch.utils.data.Sampler[Draw]):
    """Hands the draws to torch's DataLoader, which passes each on to a worker."""

    def __init__(self, draws: Any) -> None:
        self._draws = draws

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._draws())


def build_train_loader(
    dataset_path: str | os.PathLike[str],
    *,
    batch_size: int,
    crops: CropSettings,
    masking: MaskSettings,
    patch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shuffle_buffer: int = 100_000,
    max_bad_fraction: float = 0.1,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
    device: torch.device | str | None = None,
    allow_pipe: bool = False,
) -> TrainLoader:
    """Opens a data set for pretraining.

    Finite data repeats, shuffled anew each epoch; a data set smaller than a batch repeats within
    it. All ranks share one sequence of samples: of every batch of world_size * batch_size, rank r
    makes those at r, r + world_size, ... Crops, colours, masks and what stands in for a bad image
    depend on the place in the sequence and never on the rank, so the ranks' batches together are
    the batch that one rank would make. No rank ever waits for another here.

    The position counts samples of the sequence, so it holds for any number of ranks and workers:
    the next batch begins where the last one ended, even if it now has another size.

    Args:
        dataset_path: path, pattern or dataset string; see `franca_fast.data.open_source`.
        batch_size: images per batch on this rank.
        crops: settings of the augmentation.
        masking: settings of the masks.
        patch_size: side of a patch, pixels.
        seed: of shuffles, crops and masks; with the position it determines every batch.
        num_workers: processes that make batches; 0 makes them in this one.
        rank: number of this process.
        world_size: number of processes that share each batch.
        shuffle_buffer: samples that are shuffled together, at least.
        max_bad_fraction: share of samples (and of shards) that may be unusable; the run stops
            above it.
        max_image_pixels: larger images are skipped without decoding them.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".
        device: where colours are changed and the batch is put; None does this in the workers and
            gives batches on the CPU.
        allow_pipe: whether `pipe:` sources may run commands.

    Raises:
        InputError: wrong arguments, nothing at the path, or no images there.

    Example:
        >>> loader = build_train_loader("FashionMNIST:split=TRAIN", batch_size=4, patch_size=7,
        ...     crops=CropSettings(global_crops_size=28, local_crops_size=14, local_crops_number=2),
        ...     masking=MaskSettings())
        >>> next(loader).global_crops.shape
        torch.Size([8, 3, 28, 28])
    """
    if not isinstance(num_workers, int) or num_workers < 0:
        raise InputError(f"num_workers: {num_workers!r}; accepted: a whole number from 0 on")
    bad_rate = BadRate(max_bad_fraction)
    plan = BatchPlan(
        batch_size=batch_size,
        crops=crops,
        masking=masking,
        patch_size=patch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        decoding=DecodeSettings(max_image_pixels, levels),
        photometric_here=device is None,
    )
    source = open_source(dataset_path, allow_pipe=allow_pipe, max_missing_fraction=max_bad_fraction)
    return TrainLoader(
        SampleStream(source, seed=seed, shuffle_buffer=shuffle_buffer),
        plan,
        num_workers=num_workers,
        device=None if device is None else torch.device(device),
        bad_rate=bad_rate,
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A signal to the whole process group must not take the batches from a step in progress.

    The main process decides when to end; a worker ends when it is told to, or when the main
    process has gone (torch's worker loop looks every few seconds).
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
