"""The build on a machine with a GPU, without one."""

from __future__ import annotations

import shutil
import sys

import pytest

from bench.gpu import build, facts


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """A Python that lies beside its tools, none of which are in PATH."""
    for name in ("cmake", "ninja"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name}: $*" >> {tmp_path}/said; echo 7.5\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert shutil.which("cmake") is None
    return tmp_path


def test_tools_of_an_environment_that_is_not_activated_are_found(monkeypatch, tools):
    monkeypatch.setattr(sys, "argv", ["build", "--arch", "90a-real"])
    assert build.main() == 0
    said = (tools / "said").read_text().splitlines()
    assert [line.split()[1] for line in said] == ["-S", "--build", "--install"]
    assert facts.said("ninja --version") == "7.5"
