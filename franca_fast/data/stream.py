"""The endless, shuffled sequence of samples, and the position in it.

Each epoch takes the shards in a new random order. They are read in windows: as many shards as it
takes to have `shuffle_buffer` samples, which then come in random order. Both orders are functions
of (seed, epoch, window), so the position is four numbers; the contents of the window follow from
them.

Where the samples of a shard lie is only known when its headers have been read. That is done window
by window, ahead and in the background. So that training begins soon whatever there is to read, a
window of the first epoch holds no more bytes of shards than all before it, or 8 GiB: windows begin
small and double, by a rule that depends on the data alone.

There is one sequence for all ranks and workers: of every batch of B samples, rank r of R takes
those at r, r + R, r + 2R, ... A run can therefore be continued, sample for sample, on any number of
ranks and workers.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from franca_fast.data.accounting import Opened
from franca_fast.data.indexing import ShardIndexes
from franca_fast.data.randomness import Purpose, permutation, uniforms
from franca_fast.data.samples import SampleRef
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.sources import Source
from franca_fast.errors import InputError

logger = logging.getLogger(__name__)

# A window also ends when its shards hold this much in memory (compressed ones hold their images).
_WINDOW_BYTES = 2 << 30
_FIRST_BYTES = 8 << 30  # of shards in the first window
_SHARDS_AHEAD = 8  # indexed side by side


@dataclass(frozen=True)
class Position:
    """Where in the sequence the next sample is.

    Attributes:
        epoch: how often all shards have been read.
        shard: where the window begins in the epoch's order of shards.
        offset: samples of the window already taken.
        drawn: samples taken since the beginning, by all ranks together.
        window: samples in the window; only to notice that the data has changed.
    """

    epoch: int = 0
    shard: int = 0
    offset: int = 0
    drawn: int = 0
    window: int = -1

    def to_dict(self) -> dict[str, int]:
        """As plain numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Any) -> Position:
        """Reads what `to_dict` gave.

        Raises:
            InputError: other keys, or values that are not whole numbers.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(state, dict) or sorted(state) != sorted(names):
            raise InputError(f"position in the data: {state!r}; accepted: {', '.join(names)}")
        if any(type(value) is not int for value in state.values()):
            raise InputError(f"position in the data: {state!r}; accepted: whole numbers")
        return cls(**state)


class Window:
    """Some shards whose samples are shuffled together.

    Args:
        indexes: of the shards.
        order: the order of all their samples.
        next_shard: where the next window begins in the epoch's order of shards.
    """

    def __init__(
        self,
        indexes: list[ShardIndex],
        order: np.ndarray,
        next_shard: int,
    ) -> None:
        self._indexes = indexes
        self._order = order
        self._starts = np.cumsum([0, *(len(index) for index in indexes)])
        self.opened = [index.opened for index in indexes]
        self.next_shard = next_shard

    def __len__(self) -> int:
        return len(self._order)

    def refs(self, places: np.ndarray) -> list[SampleRef]:
        """The samples at some places of the random order."""
        samples = self._order[places]
        shards = np.searchsorted(self._starts, samples, side="right") - 1
        inside = samples - self._starts[shards]
        pairs = zip(shards.tolist(), inside.tolist(), strict=True)
        return [self._indexes[shard].ref(i) for shard, i in pairs]


@dataclass(frozen=True)
class Draw:
    """One rank's share of the samples of a batch.

    Attributes:
        first: number of samples drawn before the batch, by all ranks.
        numbers: int64 [b], the place of each sample in the whole sequence.
        refs: the b samples.
        spares: further samples of the same window, the same for all ranks, to stand in for those
            that cannot be decoded (see `spare`).
        opened: what is known of the images of the shards opened for this batch.
    """

    first: int
    numbers: np.ndarray
    refs: list[SampleRef]
    spares: list[SampleRef]
    opened: list[Opened]

    def spare(self, slot: int, attempt: int) -> SampleRef | None:
        """What stands in for the sample of a slot after so many did not; None when all are tried.

        It depends on the place in the sequence and not on the rank, so that a bad image changes
        nothing in what several ranks make together.
        """
        if attempt >= len(self.spares):
            return None
        return self.spares[(int(self.numbers[slot]) + attempt) % len(self.spares)]


class SampleStream:
    """Draws batches of samples from a source, without end.

    Args:
        source: the shards.
        seed: of the shuffles.
        shuffle_buffer: samples that are shuffled together, at least; sources whose neighbouring
            samples are alike are always shuffled whole.

    Example:
        >>> from franca_fast.data.sources import open_source
        >>> stream = SampleStream(open_source("FashionMNIST:split=TEST"), seed=0)
        >>> draw = stream.take(4)
        >>> len(draw.refs), stream.position.drawn
        (4, 4)
    """

    def __init__(self, source: Source, *, seed: int, shuffle_buffer: int = 100_000) -> None:
        if shuffle_buffer < 1:
            raise InputError(f"shuffle_buffer: {shuffle_buffer}; accepted: 1 or more samples")
        self.source, self._seed = source, seed
        self._shuffle_buffer = shuffle_buffer
        self._indexes = ShardIndexes(source.shards)
        self._window: Window | None = None
        self.position = Position()

    def seek(self, position: Position) -> None:
        """Goes to a position; the next draw begins there."""
        self.position = position
        self._window = None

    def take(self, count: int, rank: int = 0, world_size: int = 1, spares: int = 0) -> Draw:
        """Draws the next batch.

        Args:
            count: samples of the whole batch, of all ranks.
            rank: which share to return.
            world_size: number of shares.
            spares: further samples to name.

        Raises:
            InputError: no shard has any image (any more).
        """
        first = self.position.drawn
        refs, opened = list[SampleRef](), list[Opened]()
        taken = 0
        while taken < count:
            window = self._current_window(opened, rank)
            at = self.position
            n = min(count - taken, len(window) - at.offset)
            own = np.arange(at.offset + (rank - taken) % world_size, at.offset + n, world_size)
            refs.extend(window.refs(own))
            taken += n
            self.position = Position(at.epoch, at.shard, at.offset + n, at.drawn + n, len(window))
        numbers = np.arange(first + rank, first + count, world_size)
        drawn = uniforms(self._seed, Purpose.SPARES, np.array([first]), max(1, spares))
        places = (drawn[0, :spares] * len(window)).astype(np.int64)
        return Draw(first, numbers, refs, window.refs(places), opened)

    def _current_window(self, opened: list[Opened], rank: int) -> Window:
        """The window with the next sample; adds to `opened` what is known of new shards."""
        at = self.position
        if self._window is None:
            self._window = self._open_window(at.epoch, at.shard, rank)
            if at.offset == 0:
                opened += self._window.opened
            elif at.window != len(self._window):
                logger.warning(
                    "the data has changed: %d samples in place of %d; continuing from there",
                    len(self._window),
                    at.window,
                )
        for _ in range(2 * len(self.source.shards) + 2):  # every window of an epoch comes in these
            if self.position.offset < len(self._window):
                return self._window
            at, shard = self.position, self._window.next_shard
            epoch, shard = (
                (at.epoch, shard) if shard < len(self.source.shards) else (at.epoch + 1, 0)
            )
            self._window = self._open_window(epoch, shard, rank)
            self.position = Position(epoch, shard, 0, at.drawn, len(self._window))
            opened += self._window.opened
        raise InputError(f"no images in '{self.source.description}' any more")

    def _open_window(self, epoch: int, shard: int, rank: int) -> Window:
        """Indexes as many shards of an epoch, from a place in its order, as make a window."""
        shards = self.source.shards
        order = permutation(self._seed, Purpose.SHARD_ORDER, (epoch,), len(shards)).tolist()
        most_bytes = math.inf
        if epoch == 0:
            most_bytes = max(_FIRST_BYTES, sum(shards[number].size() for number in order[:shard]))
        indexes = list[ShardIndex]()
        samples = memory = in_bytes = 0
        for place in range(shard, len(order)):
            in_bytes += shards[order[place]].size() if epoch == 0 else 0
            if indexes and in_bytes > most_bytes:
                break
            self._indexes.prepare(order[place : place + _SHARDS_AHEAD])
            index = self._indexes[order[place]]
            indexes.append(index)
            samples += len(index)
            memory += index.memory
            full = samples >= self._shuffle_buffer and not self.source.shuffle_whole
            if full or memory >= _WINDOW_BYTES:
                break
        # The next window is probably as long. Each rank begins elsewhere in it, and finds in the
        # cache on disk what others have indexed in the meantime.
        following = shard + len(indexes)
        ahead = order[following : following + max(_SHARDS_AHEAD, len(indexes))]
        turn = rank % max(1, len(ahead))
        self._indexes.prepare(ahead[turn:] + ahead[:turn])
        shuffled = permutation(self._seed, Purpose.SAMPLE_ORDER, (epoch, shard), samples)
        return Window(indexes, shuffled, following)
