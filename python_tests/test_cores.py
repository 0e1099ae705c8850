"""Threads sleep while other programs use the cores, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from franca_fast import cores
from franca_fast.cores import share_cores

linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no /proc here")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of the time in which a thread waited for a core, period by period; then none."""
    shares: list[float] = []
    now = [0.0, 0]

    def look() -> tuple[float, dict[str, int]]:
        now[0] += 1.0
        now[1] += int(1e9 * (shares.pop(0) if shares else 0.0))
        return now[0], {"1": now[1], "2": 7}

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores, "_look", look)
    monkeypatch.setattr(cores, "_PERIOD", 0.001)
    return shares


@pytest.fixture
def events(looks: list[float], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """When idle threads began and ended: how many periods were left."""
    seen: list[str] = []

    class Idle:
        def __init__(self) -> None:
            seen.append(f"begin {len(looks)}")

        def end(self) -> None:
            seen.append(f"end {len(looks)}")

    monkeypatch.setattr(cores, "_IdleThreads", Idle)
    return seen


def until_none_is_left(looks: list[float]) -> None:
    limit = time.monotonic() + 10
    while looks and time.monotonic() < limit:
        time.sleep(0.01)


@linux
@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0, 0.2, 0.2, 0.2, 0.2, 0.2], []),  # what an undisturbed machine shows
        ([0, 0, 0.5, 0.2, 0.2, 0.2, 0.2, 0], ["begin 5", "end 0"]),
        ([0, 0.5, 0, 0, 0, 0.9, 0, 0, 0, 0, 0], ["begin 9", "end 1"]),
        ([0, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0], ["begin 9", "end 5", "begin 4", "end 0"]),
    ],
)
def test_idle_threads_are_there_while_a_thread_waits_for_a_core(
    looks: list[float], events: list[str], shares: list[float], expected: list[str]
) -> None:
    looks += shares
    with share_cores():
        until_none_is_left(looks)
        time.sleep(0.05)
    assert events == expected


@linux
def test_idle_threads_end_with_the_block(looks: list[float], events: list[str]) -> None:
    looks += [0, *[0.9] * 500]
    with share_cores():
        while not events:
            time.sleep(0.001)
    assert len(events) == 2


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_has_set_holds(
    looks: list[float], events: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    looks += [0.9] * 5
    monkeypatch.setenv(name, "1")
    with share_cores() as shared:
        time.sleep(0.05)
    assert name in shared.how and not events


def test_elsewhere_it_says_what_to_do(
    looks: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_TASKS", tmp_path)
    with share_cores() as shared:
        assert "GOMP_SPINCOUNT" in shared.how


SPUN = """
import os
os.sched_setaffinity(0, range(os.cpu_count()))
import torch
from franca_fast.cores import _IdleThreads, _loaded
torch.set_num_threads(2)
x = torch.ones(1 << 20)
def spun(awaited=0.0):
    # CPU seconds of all threads while nothing is left to do after a parallel operation: the usual,
    # and the most, which other programs on these cores hide least. They may hide it for a while:
    # where it is known what is awaited, it is looked for longer.
    def used(): return sum(int(open(f"/proc/self/task/{t}/schedstat").read().split()[0])
                           for t in os.listdir("/proc/self/task")) / 1e9
    import time
    times = []
    while len(times) < 20 or (len(times) < 500 and max(times) < awaited):
        x.mul_(1.0)
        before = used()
        time.sleep(0.02)
        times.append(used() - before)
    return sorted(times)[len(times) // 2], max(times)
print(len(_loaded("libgomp")))
usual, alone = spun()
print(usual, alone)
idle = _IdleThreads()
import time; time.sleep(0.2)
print(*spun())
idle.end(); time.sleep(0.2)
print(*spun(0.51 * alone))
"""


@linux
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: OpenMP's threads never spin")
def test_waiting_threads_sleep_once_there_are_idle_ones() -> None:
    """OpenMP's own answer, in a process of its own: pools of threads outlive a test."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    result = subprocess.run([sys.executable, "-c", SPUN], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    (found,), (_, alone), (with_idle, _), (_, after) = (
        map(float, x.split()) for x in result.stdout.splitlines()
    )
    if not found:
        pytest.skip("libgomp alone is switched, and this PyTorch has another OpenMP")
    assert with_idle < 0.2 * alone and after > 0.5 * alone
