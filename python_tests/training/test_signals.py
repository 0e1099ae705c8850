"""Signals are noted, and handlers given back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from franca_fast.training.signals import StopSignals


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted(name: signal.Signals) -> None:
    with StopSignals() as signals:
        os.kill(os.getpid(), name)
        assert signals.received is name


def test_a_second_interrupt_is_immediate() -> None:
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_happens() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with StopSignals():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
