"""The public names of the backends."""

from __future__ import annotations

import pytest

import franca_fast as ff
from franca_fast.errors import RenamedError


def test_old_call_of_the_backends_says_the_new_one():
    with pytest.raises(RenamedError, match=r"since 0\.2 it is franca_fast\.backend_table\(\)"):
        ff.backends()
