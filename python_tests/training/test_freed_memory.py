"""Freed memory is used again without the operating system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

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
    torch.ones(40, 1 << 20) + 1  # more than the C library keeps by itself
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_what_a_step_frees_the_next_one_takes_without_new_pages():
    env = {k: v for k, v in os.environ.items() if k not in freed_memory._SETTINGS}
    taken = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", PAGES_TAKEN, how]
        result = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        taken[how] = int(result.stdout)
    assert taken["keep"] < 0.1 * taken["leave"]


@pytest.mark.parametrize("name", freed_memory._SETTINGS)
def test_what_the_environment_says_holds(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not freed_memory.keep_freed_memory()
