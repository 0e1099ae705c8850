"""When the CUDA kernels offer themselves; what they compute is tested on an emulated device."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from franca_fast import _C
from franca_fast.backends import cuda


@pytest.fixture
def card(monkeypatch):
    """Gives the machine a card of some compute capability, with or without kernels for it."""

    def insert(capability, has_code):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
        core = SimpleNamespace(has_code=lambda: has_code)
        monkeypatch.setattr(_C, "cuda", core, raising=False)
        cuda._unsupported.cache_clear()

    yield insert
    cuda._unsupported.cache_clear()


def test_runs_on_a_card_that_it_was_built_for(card):
    card((9, 0), True)
    assert cuda._unsupported(0) is None


def test_says_that_a_card_is_too_old(card):
    card((7, 5), True)
    assert cuda._unsupported(0) == "compute capability 7.5 is below 8.0"


def test_says_that_it_was_built_for_other_cards(card):
    card((12, 0), False)
    assert "was not built for compute capability 12.0" in cuda._unsupported(0)
