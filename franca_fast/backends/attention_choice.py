"""Which kernels run attention on a GPU: ours or PyTorch's, by card, head_dim and length.

`attention_choice.json` lists, for each compute capability and head_dim, the kernels for lengths up
to each of its bounds; a card that is not listed takes the nearest lower capability. Another file of
the same form takes its place with FRANCA_FAST_ATTENTION_TABLE. `python -m bench.gpu.choice`
measures the card at hand and writes its entry.

A backend that was asked for (`use_backend`, FRANCA_FAST_BACKEND) runs all lengths itself.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

from franca_fast.errors import InputError

from . import registry
from .torch.varlen_attention import Run

OWN, TORCH = "own", "torch"
COMMITTED = Path(__file__).with_suffix(".json")
_ENVIRONMENT = "FRANCA_FAST_ATTENTION_TABLE"


class Table(NamedTuple):
    """The table of kernels.

    Attributes:
        origin: Where its entries come from.
        longest: Upper bounds of the lengths of the buckets but the last, increasing.
        kernels: "own" or "torch" for each bucket, by capability ("9.0") and head_dim ("64").
    """

    origin: str
    longest: tuple[int, ...]
    kernels: dict[str, dict[str, list[str]]]

    def kernel(self, capability: tuple[int, int], head_dim: int, length: int) -> str:
        """What runs sequences of a length; PyTorch where the table says nothing."""
        known = sorted(self.kernels, key=_version)
        fitting = [name for name in known if _version(name) <= capability]
        entry = self.kernels[fitting[-1]] if fitting else {}
        bucket = sum(length > bound for bound in self.longest)
        return entry.get(str(head_dim), [TORCH] * (len(self.longest) + 1))[bucket]


def read_table(path: Path) -> Table:
    """Reads and checks a table.

    Raises:
        InputError: If the file cannot be read or is not such a table.
    """
    try:
        table = Table(**json.loads(path.read_text()))
        table = table._replace(longest=tuple(int(bound) for bound in table.longest))
        n_buckets = len(table.longest) + 1
        for name, by_size in table.kernels.items():
            _version(name)
            for kernels in by_size.values():
                if len(kernels) != n_buckets or not set(kernels) <= {OWN, TORCH}:
                    raise ValueError(f"{name}: {kernels}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{_ENVIRONMENT}: {path}: {error}; accepted: a file of the form of {COMMITTED.name}"
        ) from None
    return table


def own_runs(runs: tuple[Run, ...], like: torch.Tensor, backend: str) -> tuple[Run, ...]:
    """The runs that the kernels of `backend` take; the others are PyTorch's."""
    if registry.is_requested(backend) or not like.is_cuda:
        return runs
    path = os.environ.get(_ENVIRONMENT) or str(COMMITTED)
    return _own_runs(runs, torch.cuda.get_device_capability(like.device), like.shape[2], path)


@functools.lru_cache(maxsize=256)
def _own_runs(
    runs: tuple[Run, ...], capability: tuple[int, int], head_dim: int, path: str
) -> tuple[Run, ...]:
    table = read_table(Path(path))
    return tuple(run for run in runs if table.kernel(capability, head_dim, run.length) == OWN)


def _version(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)
