"""Stopping a run between two steps on a signal."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

from franca_fast.training.distributed.world import World

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C so that a step can be finished first.

    A second Ctrl-C interrupts at once. Handlers are those of before after the block; outside the
    main thread, where Python allows no handlers, nothing is noted.

    Args:
        alone: whether this is the only process of the run. Otherwise a second Ctrl-C changes
            nothing: torchrun passes on what the terminal has sent already.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self._alone = alone
        self.received: signal.Signals | None = None
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {name: signal.signal(name, self._note) for name in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def agree(self, world: World) -> signal.Signals | None:
        """What any rank has received so far; the same on all ranks afterwards."""
        counts = world.all_reduce([self.received is name for name in _SIGNALS])
        for name, count in zip(_SIGNALS, counts, strict=True):
            if count:
                self.received = name
                break
        return self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Forked data workers inherit this handler. A terminal sends Ctrl-C to them as well; they
        # must live on until the step that needs them is done.
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self.received is not None and self._alone:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
