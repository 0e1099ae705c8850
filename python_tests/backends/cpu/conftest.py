"""Every instruction set that this machine runs, for the tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from franca_fast import _C


@pytest.fixture(params=_C.cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)
