"""One work that is timed on a GPU, the setting it is timed in, and how its variants are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import franca_fast as ff
from franca_fast.backends import contracts, registry
from franca_fast.benchmarks.cases import NESTED

Call = Callable[[Any], object]
FEW_ROWS = 64


@dataclass(frozen=True)
class Setting:
    """Where to run, and at which sizes.

    Attributes:
        device: Device of all inputs, which is also the default device while they are made.
        rows: Numbers of rows N to measure at.
        widths: Prototypes of each nested head.
        depth: Length of the bottleneck features.
        crops: Images and tokens of each, of every size of crop.
    """

    device: torch.device
    rows: tuple[int, ...] = (FEW_ROWS, 3072)
    widths: tuple[int, ...] = NESTED
    depth: int = 256
    crops: tuple[tuple[int, int], ...] = ((64, 257), (256, 50))  # 32 images of the recipes

    def backends(self, operator: str, dtype: torch.dtype = torch.bfloat16) -> list[str]:
        """Backends that run an operator here."""
        return registry.available(operator, torch.empty(0, dtype=dtype, device=self.device))


@dataclass
class Case:
    """One work.

    Attributes:
        name: What is done, and at which size.
        make: Gives a fresh set of inputs, which no kernel under test has touched.
        variants: What to run on them, by name. Those whose first word is a backend run on it.
        bytes_moved: Least traffic of device memory, for the roofline.
        operations: Floating-point operations of the matrix products, 0 without any.
        short: Whether a call is so short that a replayed graph is timed as well.
    """

    name: str
    make: Callable[[], Any]
    variants: dict[str, Call] = field(default_factory=dict)
    bytes_moved: int = 0
    operations: int = 0
    short: bool = False


def asked_for(variant: str) -> ff.use_backend:
    """The context in which a variant runs."""
    name = variant.split()[0]
    return ff.use_backend(name if name in contracts.BACKENDS else "auto")


def compiled(call: Call, setting: Setting) -> Call:
    """The call under torch.compile; without a compiler in a dry run, which has no time for one."""
    backend = "inductor" if setting.device.type == "cuda" else "eager"

    @functools.cache
    def made() -> Call:
        # Not before the first call: torch.compile imports for seconds.
        return torch.compile(call, dynamic=False, backend=backend)

    return lambda inputs: made()(inputs)
