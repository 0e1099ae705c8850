from __future__ import annotations

import sys

import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.extras import need


def test_what_is_missing_is_said_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"needs faiss-cpu.*pip install 'franca-fast\[eval\]'"):
        need("faiss", "overclustering")


def test_what_is_there_is_imported() -> None:
    assert callable(need("scipy.optimize", "this").linear_sum_assignment)
