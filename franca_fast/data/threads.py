"""Work side by side, with little taken ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from franca_fast.errors import InputError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    num_workers: int,
    stop: threading.Event,
) -> Iterator[_Result]:
    """Does some work for each item in threads; results come as they are finished.

    Few items are taken ahead. Whatever ends the iteration early sets `stop`, which the work looks
    at, and waits for the threads.
    """
    if num_workers < 1:
        raise InputError(f"num_workers: {num_workers}; accepted: 1 or more")
    with ThreadPoolExecutor(num_workers) as threads:
        running = set[Future[_Result]]()
        try:
            for item in items:
                running.add(threads.submit(work, item))
                if len(running) >= 2 * num_workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from [future.result() for future in done]
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from [future.result() for future in done]
        finally:
            stop.set()
            for future in running:
                future.cancel()


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], num_workers: int, ahead: int
) -> Generator[_Result, None, None]:
    """Does some work for each item in threads; results come in the order of the items.

    Args:
        work: what is done; with several threads, for several items at once.
        items: taken by the thread that asks for the results.
        num_workers: threads; with 0 the work is done when its result is asked for.
        ahead: items that are taken before the result of the first is waited for. The threads work
            on them while results are used.

    Example:
        >>> list(in_order(str, range(4), num_workers=2, ahead=3))
        ['0', '1', '2', '3']
    """
    if num_workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(num_workers) as threads:
        waiting = deque[Future[_Result]]()
        try:
            for item in items:
                waiting.append(threads.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
