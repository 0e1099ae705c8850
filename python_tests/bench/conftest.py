"""A full disk, and a program that takes one thread."""

from __future__ import annotations

import errno
import os

import pytest
import torch


@pytest.fixture
def disk(monkeypatch):
    """A disk of so many bytes for the record."""
    left, write = [1 << 30], os.write

    def limited(handle, content):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(handle, content[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    return left


@pytest.fixture
def one_thread(monkeypatch):
    """Also of what is started: threads that wait for each other would double the time."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
