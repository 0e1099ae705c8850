"""The demo as a part: what it leaves."""

from __future__ import annotations

import subprocess
import sys

from bench.gpu import demo, record
from bench.gpu.folder import TEMPORARY, taken


def test_what_the_demo_leaves_is_cleared(monkeypatch, tmp_path):
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["demo", "--device=cpu"])
    left = []

    def run(command, **_):
        left.extend(tmp_path.glob(f"{TEMPORARY}*"))
        assert str(left[0]) in command[5]
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert demo.main() == 0
    left[0].mkdir()  # as when it was killed
    with taken(tmp_path, "cpu"):
        assert not left[0].exists()
