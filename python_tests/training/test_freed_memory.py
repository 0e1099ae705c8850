"""Freed memory is used again without the operating system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from franca_fast.training import freed_memory

PAGES_TAKEN = """
import resource, sys
import torch
from franca_fast.training.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
def step():
    torch.ones(10, 1 << 20) + 1  # more than the C library keeps by itself
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_what_a_step_frees_the_next_one_takes_without_new_pages():
    env = {k: v for k, v in os.environ.items() if k not in freed_memory._SETTINGS}
    taken = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", PAGES_TAKEN, how]
        result = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        taken[how] = int(result.stdout)
    assert taken["keep"] < 0.3 * taken["leave"]


@pytest.mark.parametrize("name", freed_memory._SETTINGS)
def test_what_the_environment_says_holds(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not freed_memory.keep_freed_memory()


@pytest.mark.parametrize(
    ("most", "calls"),
    [
        (1 << 30, [(-3, 1 << 30), (-1, 2**31 - 1)]),
        (32 << 20, [(-3, 1 << 30), (-3, 32 << 20), (-1, 2**31 - 1)]),  # glibc before 2.35
        (0, [(-3, 1 << 30), (-3, 32 << 20)]),
    ],
)
def test_nothing_is_changed_where_the_size_of_large_tensors_is_refused(monkeypatch, most, calls):
    made = []

    def mallopt(name, value):
        made.append((name, value.value))
        return int(name == -1 or value.value <= most)

    for name in freed_memory._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    library = SimpleNamespace(mallopt=mallopt)
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: library)
    assert freed_memory.keep_freed_memory() == (most > 0)
    assert made == calls
