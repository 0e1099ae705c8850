"""When the Triton backend offers itself, and what it says when it does not."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import franca_fast as ff
from franca_fast.backends import triton as backend
from franca_fast.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def _not_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def installed(monkeypatch):
    """Sets the version of triton that seems to be installed; None for none."""

    def set_version(version):
        def find(name):
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", find)
        backend._missing.cache_clear()

    yield set_version
    backend._missing.cache_clear()


@pytest.mark.usefixtures("_not_interpreted")
def test_says_that_it_needs_a_gpu(installed):
    installed("3.4.0")
    reason = backend.unavailable("sinkhorn", torch.zeros(1))
    assert reason is not None and "not on a CUDA device" in reason


def test_says_that_triton_is_missing(installed):
    installed(None)
    assert backend.unavailable("sinkhorn", torch.zeros(1)) == "triton is not installed"


def test_says_that_triton_is_too_old(installed):
    installed("3.3.1")
    reason = backend.unavailable("sinkhorn", torch.zeros(1))
    assert reason == "triton 3.3.1 is older than 3.4"


def test_says_which_dtypes_it_takes(installed):
    installed("3.4.0")
    reason = backend.unavailable("sinkhorn", torch.zeros(1, dtype=torch.float64))
    assert reason == "torch.float64 is not among float32, bfloat16 and float16"


@pytest.mark.usefixtures("_not_interpreted")
def test_a_request_that_cannot_be_met_is_an_error(installed):
    installed("3.4.0")
    with (
        ff.use_backend("triton"),
        pytest.raises(InputError, match="'triton' was asked for but cannot run sinkhorn"),
    ):
        ff.ops.sinkhorn_knopp(torch.zeros(2, 3), 0.1)


def test_importing_the_backend_leaves_triton_alone():
    code = "import sys, franca_fast.backends.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
