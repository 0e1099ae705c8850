"""The names of the package itself."""

from __future__ import annotations

import pytest

import franca_fast as ff
from franca_fast.errors import RenamedError


def test_version_is_that_of_the_public_names():
    assert ff.__version__.startswith("0.2.")


def test_functions_are_those_of_their_packages():
    assert ff.backend_table is ff.backends.backend_table
    assert ff.embed is ff.evaluation.embed
    assert ff.load_model is ff.hub.load_model
    assert ff.pretrain is ff.training.pretrain


def test_old_call_of_the_backends_says_the_new_one():
    with pytest.raises(RenamedError, match=r"since 0\.2 it is franca_fast\.backend_table\(\)"):
        ff.backends()
