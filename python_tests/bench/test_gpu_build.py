"""The build on a machine with a GPU, and what is told of the machine: without one."""

from __future__ import annotations

import shutil
import subprocess
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


def test_the_commit_is_a_fact(tmp_path):
    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(root), *name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    root = tmp_path / "a folder"
    root.mkdir()
    assert "no repository" in facts.commit(root)
    git("init")
    (root / "file").touch()
    git("add", "file")
    git("commit", "-m", "One.")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert facts.commit(root) == commit
    (root / "file").write_text("changed")
    assert facts.commit(root) == f"{commit}-dirty"
    assert "commit" in dict(facts.facts("cpu"))
