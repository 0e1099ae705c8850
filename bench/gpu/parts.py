"""The parts of a session, in order: first what is known least and told soonest.

A session on a rented card is short and may end at any moment. The first command builds, proves and
times our kernels before anything that is merely useful; the second one, on the same machine,
measures what takes long.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: In the record, and of its log.
        seconds: It is ended after so long.
        module: `python -m bench.gpu.<module>`.
        arguments: Of the module, beside the device.
        environment: On top of the session's.
    """

    name: str
    seconds: float
    module: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, device: str) -> list[str]:
        """What is run."""
        module = f"bench.gpu.{self.module}"
        return [sys.executable, "-m", module, "--device", device, *self.arguments]


def _smoke(backend: str) -> Part:
    return Part(f"smoke {backend}", 90, "smoke", ("--backend", backend))


def _warm(family: str) -> Part:
    """Compiles Triton's kernels of one family, which no later part then waits for."""
    return Part(f"warm {family}", 90, "timings", ("--warm", "--only", family, "--variant=triton"))


def _timings(name: str, seconds: float, *variants: str) -> Part:
    chosen = [f"--variant={variant}" for variant in variants]
    return Part(f"timings {name}", seconds, "timings", tuple(chosen))


def _tests(backend: str, seconds: float) -> Part:
    return Part(f"tests {backend}", seconds, "tests", ("-k", backend))


def _steps(recipe: str, seconds: float) -> Part:
    return Part(f"steps {recipe}", seconds, "steps", (recipe,))


# The parts of a stage run at the same time. Those beside the build compile, too.
_BUILD = (
    Part("facts", 60, "facts"),
    Part("build", 200, "build"),
    *map(_warm, ("sinkhorn", "loss", "streamed", "attention")),
)

FIRST: Sequence[Sequence[Part]] = (
    _BUILD,
    (_smoke("cuda"), Part("first use in a graph", 90, "smoke", ("--first-use",))),
    (_timings("cuda", 75, "device", "cuda", "cuda in place"),),
    (_steps("vitb14_in21k", 75),),
    (Part("profile", 90, "profile"),),
    (_tests("cuda", 120),),
    (_timings("triton", 75, "triton", "triton in place"),),
    (
        _timings(
            "others", 90, "eager", "library", "product alone", "sdpa", "varlen_attn", "flash_attn"
        ),
    ),
    (_steps("vits14", 60),),
)

SECOND: Sequence[Sequence[Part]] = (
    (_smoke("triton"),),
    (Part("choice", 60, "choice"),),
    (_timings("compiled", 150, "compiled"),),
    (_steps("vitl14_8gpu", 90),),
    (_tests("triton", 120),),
    (Part("demo", 60, "demo"),),
    (Part("memcheck", 120, "sanitizer", ("memcheck",)),),
    (Part("racecheck", 120, "sanitizer", ("racecheck",)),),
)

SESSIONS = {"first": FIRST, "second": SECOND}
# After so many seconds a session ends; parts that are asked for by name have the longer time.
SECONDS = {"first": 420.0, "second": 560.0}
NAMES = [part.name for stages in SESSIONS.values() for stage in stages for part in stage]
