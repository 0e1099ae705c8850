"""The names of the package itself."""

from __future__ import annotations

import franca_fast as ff


def test_version_is_that_of_the_public_names():
    assert ff.__version__.startswith("0.2.")


def test_functions_are_those_of_their_packages():
    assert ff.backend_table is ff.backends.backend_table
    assert ff.embed is ff.evaluation.embed
    assert ff.load_model is ff.hub.load_model
    assert ff.pretrain is ff.training.pretrain
    assert ff.share_cores is ff.cores.share_cores
