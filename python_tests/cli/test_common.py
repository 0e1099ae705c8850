"""What several verbs share: recipes are listed, warnings wait for the end."""

from __future__ import annotations

import logging

import pytest

from franca_fast.cli.common import (
    Parser,
    add_decoding_arguments,
    decoding_options,
    warnings_at_the_end,
)
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


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--levels", "minmax"], {"levels": "minmax"}),
        (["--levels", "-1024:3071"], {"levels": "-1024:3071"}),
        (["--levels=-.5:9", "--max-image-pixels", "9"], {"levels": "-.5:9", "max_image_pixels": 9}),
    ],
)
def test_options_of_decoding_are_those_that_were_given(words: list[str], options: dict) -> None:
    parser = Parser()
    add_decoding_arguments(parser)
    assert decoding_options(parser.parse_args(words)) == options


@pytest.mark.parametrize("words", [["--levels", "9:-9"], ["--max-image-pixels", "0"]])
def test_bad_options_of_decoding_are_refused(words: list[str]) -> None:
    parser = Parser()
    add_decoding_arguments(parser)
    with pytest.raises(InputError, match="; accepted: "):
        decoding_options(parser.parse_args(words))
