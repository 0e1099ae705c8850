"""Which kernels are faster on which card: the table behind the automatic choice on a GPU.

`choices.json` names, for each compute capability, the backend that runs an operator where the order
of preference would take another, and the kernels of attention by head_dim and length. A card that
is not listed takes the nearest lower capability. Another file of the same form takes its place with
FRANCA_FAST_CHOICES; `python -m bench.gpu.choice` measures the card at hand and writes its entries.

The table never makes anything run that cannot: what it names and is not there is passed over. A
backend that was asked for (`use_backend`, FRANCA_FAST_BACKEND) runs whatever the table says.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from franca_fast.backends.contracts import BACKENDS, OPERATORS
from franca_fast.errors import InputError

OWN, TORCH = "own", "torch"
COMMITTED = Path(__file__).with_suffix(".json")
ENVIRONMENT = "FRANCA_FAST_CHOICES"

Capability = tuple[int, int]


class Table(NamedTuple):
    """The table.

    Attributes:
        origin: Where its entries come from, sentences that begin with the capability.
        operators: By capability ("9.0"), the backend of operators.
        longest: Upper bounds of the lengths of attention's buckets but the last, increasing.
        attention: "own" or "torch" for each bucket, by capability and head_dim ("64").
    """

    origin: list[str]
    operators: dict[str, dict[str, str]]
    longest: tuple[int, ...]
    attention: dict[str, dict[str, list[str]]]

    def capabilities(self) -> list[str]:
        """All capabilities with an entry, in order."""
        return sorted({*self.operators, *self.attention}, key=version)

    def backend(self, operator: str, card: Capability) -> str | None:
        """The backend that the table prefers for an operator; None where it says nothing."""
        return self.operators.get(_nearest(self.operators, card), {}).get(operator)

    def attention_kernels(self, card: Capability, head_dim: int) -> list[str]:
        """What runs sequences of each bucket; PyTorch where the table says nothing."""
        by_size = self.attention.get(_nearest(self.attention, card), {})
        return by_size.get(str(head_dim), [TORCH] * (len(self.longest) + 1))

    def attention_kernel(self, card: Capability, head_dim: int, length: int) -> str:
        """What runs sequences of a length."""
        bucket = sum(length > bound for bound in self.longest)
        return self.attention_kernels(card, head_dim)[bucket]

    def describe(self, card: Capability) -> str:
        """What the table says of a card, in words."""
        operators = self.operators.get(_nearest(self.operators, card), {})
        words = [f"{operator} on {backend}" for operator, backend in operators.items()]
        bounds = ["1", *(str(bound + 1) for bound in self.longest)]
        ends = [*(f" to {bound}" for bound in self.longest), " on"]
        for head_dim in self.attention.get(_nearest(self.attention, card), {}):
            kernels = enumerate(self.attention_kernels(card, int(head_dim)))
            own = [bounds[i] + ends[i] for i, kernel in kernels if kernel == OWN]
            words.append(f"attention of {head_dim} a head ours at lengths {', '.join(own) or '-'}")
        return "; ".join(words) or "nothing"

    def origin_of(self, card: Capability) -> str:
        """Where the entries of a card come from."""
        names = {_nearest(self.operators, card), _nearest(self.attention, card)} - {""}
        if not names:
            return f"nothing is known of compute capability {card[0]}.{card[1]}"
        said = []
        for name in sorted(names, key=version):
            sentences = [s for s in self.origin if s.startswith(f"{name} ")]
            said += sentences or [f"the entry of {name} does not say where it is from"]
        return " ".join(said)


def _nearest(names: Iterable[str], card: Capability) -> str:
    """The highest capability that is not above the card's; empty when all are."""
    fitting = [name for name in names if version(name) <= card]
    return max(fitting, key=version, default="")


def read_table(file: Path) -> Table:
    """Reads and checks a table.

    Raises:
        InputError: If the file cannot be read or is not such a table.
    """
    try:
        found = Table(**json.loads(file.read_text()))
        if not isinstance(found.origin, list) or not all(isinstance(s, str) for s in found.origin):
            raise ValueError(f"origin: {found.origin!r} is no list of sentences")
        bounds = [0, *found.longest]
        if not all(type(n) is int for n in bounds) or bounds != sorted(set(bounds)):
            raise ValueError(f"longest: {found.longest!r} are no increasing lengths")
        found = found._replace(longest=tuple(found.longest))
        for name, backends in found.operators.items():
            version(name)
            if not set(backends) <= set(OPERATORS) or not set(backends.values()) <= set(BACKENDS):
                raise ValueError(f"{name}: {backends}")
        for name, by_size in found.attention.items():
            version(name)
            for head_dim, kernels in by_size.items():
                int(head_dim)
                if len(kernels) != len(found.longest) + 1 or not set(kernels) <= {OWN, TORCH}:
                    raise ValueError(f"{name}: {kernels}")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{ENVIRONMENT}: {file}: {error}; accepted: a file of the form of {COMMITTED.name}"
        ) from None
    return found


def path() -> str:
    """The file that FRANCA_FAST_CHOICES names, or the committed one."""
    return os.environ.get(ENVIRONMENT) or str(COMMITTED)


@functools.lru_cache(maxsize=8)
def table(file: str) -> Table:
    """The table of a file, read once.

    Raises:
        InputError: If it cannot be read.
    """
    return read_table(Path(file))


def version(capability: str) -> Capability:
    """(9, 0) of "9.0"; ValueError for anything else."""
    major, minor = capability.split(".")
    return int(major), int(minor)
