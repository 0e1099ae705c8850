"""Matrices that kernels fill."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from franca_fast.backends.cpu import _memory as memory


@pytest.mark.parametrize(("rows", "huge"), [(3, False), (1 << 10, True)])
def test_only_large_matrices_are_asked_to_lie_in_huge_pages(rows, huge, monkeypatch):
    asked = []
    core = SimpleNamespace(prefer_huge_pages=lambda *place: asked.append(place))
    monkeypatch.setattr(memory, "_C", core)
    out = memory.matrix(rows, 1 << 11, torch.bfloat16)
    assert (out.shape, out.dtype) == ((rows, 1 << 11), torch.bfloat16)
    pages = -(-out.nbytes // (2 << 20)) * (2 << 20)
    assert asked == ([(out.data_ptr(), pages)] if huge else [])
    assert not huge or out.data_ptr() % (2 << 20) == 0
    assert out.is_contiguous() and not out._is_view()
