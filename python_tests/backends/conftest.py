"""A table of choices and a card, for the tests of what runs where."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from franca_fast.backends import registry


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table that takes the place of the committed one."""

    def write(content):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("FRANCA_FAST_CHOICES", str(path))
        return path

    return write


@pytest.fixture
def card(monkeypatch):
    """A tensor as if it were on a card of capability 9.0, where every backend can run."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(registry, "_unavailable", lambda backend, operator, tensor: None)
    return SimpleNamespace(
        is_cuda=True,
        device=SimpleNamespace(type="cuda"),
        dtype=torch.bfloat16,
        shape=(407, 2, 64),
    )
