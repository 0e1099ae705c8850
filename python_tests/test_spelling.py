from __future__ import annotations

import os
import random

import pytest

from franca_fast.spelling import ERRORS, spell, unspell

NAMES = [
    "a.png",
    "grüße-你好.jpg",
    "a\udce9.png",
    "\\x41.png",
    "\\\\x5c\udcff",
    "\\\udc80",
    "\\x5\udce9",
    "line\nfeed",
    "",
]


def random_names(count: int) -> list[str]:
    """Names of files as bytes of any kind give them."""
    draw = random.Random(0)
    pieces = [b"\\", b"x", b"e9", b"5c", b"\xe9", b"\xc3", b"\xa9", b"a", "é".encode(), b"\xed\xa0"]
    return [os.fsdecode(b"".join(draw.choices(pieces, k=draw.randrange(8)))) for _ in range(count)]


@pytest.mark.parametrize("name", [*NAMES, *random_names(300)])
def test_every_name_comes_back(name: str) -> None:
    spelled = spell(name)
    spelled.encode("utf-8")
    assert unspell(spelled) == name


def test_different_names_are_spelled_differently() -> None:
    names = {*NAMES, *random_names(3000)}
    assert len({spell(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["a.png", "grüße.jpg", "a\\b.png", "x41"])
def test_plain_names_stay_as_they_are(name: str) -> None:
    assert spell(name) == name


@pytest.mark.parametrize("name", [name for name in NAMES if "\\x" not in name])
def test_a_terminal_of_any_encoding_can_write_it(name: str) -> None:
    written = name.encode("ascii", ERRORS).decode("ascii")
    assert unspell(written) == name
