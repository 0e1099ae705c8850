"""The public names of the losses."""

from __future__ import annotations

import pytest

import franca_fast as ff
from franca_fast.errors import RenamedError


def test_the_name_of_an_earlier_version_says_what_stands_in_its_place():
    with pytest.raises(RenamedError, match=r"it is franca_fast\.ops\.ClusteringTargets"):
        _ = ff.losses.ClusteringTargets
