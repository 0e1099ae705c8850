"""The public names of the operators."""

from __future__ import annotations

import pytest

import franca_fast as ff
from franca_fast.errors import RenamedError


@pytest.mark.parametrize("name", ["FactoredScores", "row_potentials"])
def test_names_of_earlier_versions_say_what_stands_in_their_place(name):
    with pytest.raises(RenamedError, match=rf"ops\.{name}: since 0\.2 it is franca_fast\.ops\."):
        getattr(ff.ops, name)
