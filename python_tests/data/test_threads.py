"""Work in threads: all of it is done, little is taken ahead, and it ends when nobody wants it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from franca_fast.data.threads import in_order, in_threads
from franca_fast.errors import InputError


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_item_is_worked_on_once(num_workers: int) -> None:
    results = in_threads(lambda x: x * x, range(20), num_workers, threading.Event())
    assert sorted(results) == [x * x for x in range(20)]


def test_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for x in range(100):
            taken.append(x)
            yield x

    results = in_threads(lambda x: x, items(), 2, threading.Event())
    next(results)
    assert len(taken) == 4
    results.close()


def test_leaving_early_stops_the_work_and_waits_for_it() -> None:
    stop, ended = threading.Event(), []

    def work(x: int) -> int:
        if x > 0:
            ended.append(stop.wait(60))
        return x

    results = in_threads(work, range(4), 2, stop)
    assert next(results) == 0
    results.close()
    assert ended and all(ended)


def test_an_error_in_a_thread_is_raised_and_stops_the_others() -> None:
    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // x, [1, 0, 1], 1, stop))
    assert stop.is_set()


def test_no_threads_are_refused() -> None:
    with pytest.raises(InputError, match="num_workers: 0; accepted: 1 or more"):
        next(in_threads(lambda x: x, [1], 0, threading.Event()))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_results_come_in_the_order_of_the_items(num_workers: int) -> None:
    first_waits = threading.Event()

    def work(x: int) -> int:
        if x == 0 and num_workers:  # ends after the others
            assert first_waits.wait(60)
        if x == 5:
            first_waits.set()
        return x * x

    assert list(in_order(work, range(20), num_workers, 8)) == [x * x for x in range(20)]


def test_items_are_worked_on_ahead_and_no_more_of_them_than_was_said() -> None:
    taken, done = [], threading.Semaphore(0)

    def items() -> Iterator[int]:
        for x in range(100):
            taken.append(x)
            yield x

    results = in_order(lambda x: done.release() or x, items(), 2, 7)
    assert next(results) == 0
    assert all(done.acquire(timeout=60) for _ in range(8))  # though nobody asks for them
    assert len(taken) == 8
    results.close()


def test_an_error_is_raised_when_its_result_is_due() -> None:
    results = in_order(lambda x: 1 // x, [1, 0, 1], 2, 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
