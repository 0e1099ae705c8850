"""What is told of the machine and the code."""

from __future__ import annotations

import subprocess

from bench.gpu import facts


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
