"""Errors of users, and what they are told of names that are near or have changed."""

from __future__ import annotations

import pytest

from franca_fast.errors import (
    FrancaError,
    InputError,
    OutputError,
    RenamedError,
    did_you_mean,
    error_line,
    renamed,
)


def test_the_nearest_name_is_offered_and_none_where_none_is_near():
    assert did_you_mean("vit_bose", ["vit_small", "vit_base"]) == " (did you mean 'vit_base'?)"
    assert did_you_mean("xyz", ["vit_small", "vit_base"]) == ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError, ValueError),
        (RenamedError, ImportError),
        (OutputError, InputError),
        (OutputError, OSError),
    ],
)
def test_errors_are_also_pythons_own(error, kind):
    assert issubclass(error, FrancaError) and issubclass(error, kind)


def test_an_old_name_says_the_new_one_and_an_unknown_name_is_missing():
    look_up = renamed("package", {"old": "package.new"})
    with pytest.raises(RenamedError, match=r"package\.old: since 0\.2 it is package\.new"):
        look_up("old")
    with pytest.raises(AttributeError, match="'package' has no attribute 'other'"):
        look_up("other")


def test_an_output_s_error_has_the_cause_s_number_and_says_its_own_words():
    error = OutputError("output: 'a', full", OSError(28, "No space left", "other"))
    assert (error.errno, error.kept, str(error)) == (28, None, "output: 'a', full")
    assert error_line(error) == "output: 'a', full"
