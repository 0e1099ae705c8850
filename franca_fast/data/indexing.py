"""Indexes of shards, made side by side in the background before they are needed."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.shards import Shard

_THREADS = 8  # mostly they wait for a disk
_MEMORY = 1 << 30


class ShardIndexes:
    """The indexes of some shards; the ones used last are kept in memory.

    The threads end with the process and hold nothing up: neither its end nor an interrupt.

    Args:
        shards: what to index.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._kept: OrderedDict[int, ShardIndex] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[int, Future[ShardIndex]] = {}
        self._waiting: queue.SimpleQueue[tuple[int, Future[ShardIndex]]] = queue.SimpleQueue()
        self._threads = 0

    def prepare(self, numbers: Sequence[int]) -> None:
        """Begins with some shards, unless their indexes would hold what is in them."""
        for number in numbers:
            if self._shards[number].early and number not in self._kept:
                self._begin(number)

    def __getitem__(self, number: int) -> ShardIndex:
        """The index of a shard; waits for it if need be."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        index = self._begin(number).result()
        del self._under_way[number]
        self._kept[number] = index
        self._kept_bytes += index.memory
        while self._kept_bytes > _MEMORY and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].memory
        return index

    def __len__(self) -> int:
        """How many are in memory, or under way."""
        return len(self._kept) + len(self._under_way)

    def _begin(self, number: int) -> Future[ShardIndex]:
        if number not in self._under_way:
            future = self._under_way[number] = Future()
            self._waiting.put((number, future))
            if self._threads < min(_THREADS, len(self._shards)):
                self._threads += 1
                threading.Thread(target=self._work, daemon=True).start()
        return self._under_way[number]

    def _work(self) -> None:
        while True:
            number, future = self._waiting.get()
            try:
                future.set_result(self._shards[number].index())
            except BaseException as error:  # raised where the index is asked for
                future.set_exception(error)
