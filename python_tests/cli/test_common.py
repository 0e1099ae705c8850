"""What several verbs share: recipes are listed, warnings wait for the end."""

from __future__ import annotations

import logging

import pytest

from franca_fast.cli.common import warnings_at_the_end
from franca_fast.config import list_recipes
from franca_fast.errors import InputError


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_the_recipes_are_listed(run, verb: str) -> None:
    outcome = run(verb, "--list-recipes")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == list_recipes()


def test_warnings_wait_for_the_end_and_many_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_at_the_end():
        for i in range(12):
            logging.getLogger("franca_fast.data").warning("file %d", i)
        assert "warning: file" not in capsys.readouterr().err
    shown = capsys.readouterr().err.splitlines()
    assert [line for line in shown if line.startswith("warning: ")] == [
        *(f"warning: file {i}" for i in range(10)),
        "warning: 2 more like these",
    ]


def test_after_an_error_warnings_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError), warnings_at_the_end():
        logging.getLogger("franca_fast.data").warning("file")
        raise InputError("path: 'x'; accepted: a file")
    assert "warning: file" not in capsys.readouterr().err
