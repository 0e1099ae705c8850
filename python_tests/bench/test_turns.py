"""Children that take turns: whose turn it is, what they answer, and how they end."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from bench.turns import Child, ChildError, peak_bytes, started, take_turns

# Notes each of its steps in a file; without one, it ends instead.
CHILD = """
import sys
from bench.turns import Turns
turns = Turns()
print("this is no answer")
turns.wait(arguments=sys.argv[1:])
for step in range(3):
    with open(sys.argv[2], "a") as file:
        file.write(sys.argv[1])
    turns.wait(step=step)
sys.exit("tired")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "some_child"


def test_children_take_turns_and_warm_ups_are_not_counted(module, tmp_path):
    turns = str(tmp_path / "turns")
    with ExitStack() as stack:
        children = started(stack, {name: (module, [name, turns]) for name in "ab"})
        answers = take_turns(children, steps=2, warm_ups=1)
    assert [child.about["arguments"] for child in children] == [["a", turns], ["b", turns]]
    assert (tmp_path / "turns").read_text() == "ababab"
    assert [a["step"] for a in answers["a"]] == [a["step"] for a in answers["b"]] == [1, 2]
    # Not that of this process, which has loaded PyTorch and started them.
    assert 0 < answers["a"][0]["peak_bytes"] < peak_bytes() / 2


def test_a_child_that_ends_says_why(module, tmp_path):
    message = r"c ended with status 1:\n.*No module named missing"
    with Child("c", "missing", []) as child, pytest.raises(ChildError, match=message):
        child.ask()
    with Child("d", module, ["d", os.devnull]) as child:
        for _ in range(3):
            child.ask()
        for _ in range(2):  # also when it is asked again
            with pytest.raises(ChildError, match=r"d ended with status 1:\n(.|\n)*tired"):
                child.ask()
