"""Fixtures of the training tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not survive a power cut here, and a busy disk makes each wait seconds long."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
