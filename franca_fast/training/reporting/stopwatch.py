"""How long a rank takes for work that waits for no other rank."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Stopwatch:
    """Times the teacher's backbone in every step: from `start` to the call of its first head.

    Within a step ranks wait for each other, so that all take as long as the slowest. The teacher's
    backbone runs before the first exchange of assignments and tells them apart. (Where the network
    is sharded, its blocks are gathered on the way, so that ranks of one copy differ less.)

    Args:
        heads: of the teacher; called after its backbone.
        device: of the networks.
        steps: how many of the latest steps `seconds` averages over.
    """

    def __init__(self, heads: Iterable[nn.Module], device: torch.device, steps: int) -> None:
        self._cuda = device.type == "cuda"
        # Moments are seconds on a CPU and events on a GPU.
        self._started: Any = None
        self._spans: deque[tuple[Any, Any]] = deque(maxlen=steps)
        for head in heads:
            head.register_forward_pre_hook(self._stop)

    def start(self) -> None:
        """Begins a step."""
        self._started = self._now()

    def seconds(self) -> float:
        """Mean over the latest steps, whose results must have been read; 0 before the first."""
        spans = [
            begin.elapsed_time(end) / 1e3 if self._cuda else end - begin
            for begin, end in self._spans
        ]
        return sum(spans) / max(1, len(spans))

    def _stop(self, *_: object) -> None:
        if self._started is not None:
            self._spans.append((self._started, self._now()))
            self._started = None

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
