"""What is timed on a GPU.

To add a work, write a function that takes a `Setting` and yields `Case`s, each with a baseline and
with its bytes or its operations, and append it to `WORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.gpu.attention_works import attention_cases
from bench.gpu.case import Case, Setting
from bench.gpu.clustering_works import (
    ceiling_cases,
    loss_cases,
    scores_cases,
    sinkhorn_cases,
    streamed_cases,
)

WORKS: list[Callable[[Setting], Iterator[Case]]] = [
    ceiling_cases,
    sinkhorn_cases,
    loss_cases,
    scores_cases,
    streamed_cases,
    attention_cases,
]


def cases(setting: Setting) -> Iterator[Case]:
    """All works at all sizes."""
    for work in WORKS:
        yield from work(setting)
