"""torchrun with ranks that are killed: the others stop, and the restarted run loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from franca_fast.hub.checkpoint_files import read_checkpoint
from python_tests.training.tiny import ROOT, assert_same, losses_of


def torchrun(folder: Path, kills: list[list[object]]) -> subprocess.CompletedProcess[str]:
    """Two sharded ranks, restarted as often as they are killed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [
            *(sys.executable, *launcher, f"--max-restarts={len(kills)}"),
            *("-m", "python_tests.training.ranks", str(folder), json.dumps(kills)),
            "train.parallel=sharded",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.timeout(900)
def test_killed_ranks_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    # All before any checkpoint; one, which the other must notice; one within a checkpoint.
    kills = [[2, [0, 1]], [5, [1]], ["checkpoint", [0]]]
    for name, listed in (("killed", kills), ("undisturbed", [])):
        done = torchrun(tmp_path / name, listed)
        assert done.returncode == 0, done.stderr[-5000:]
        assert done.stdout.count("exported teacher") == 1
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert losses_of(killed) == losses_of(undisturbed)
    ours, theirs = (read_checkpoint(f / "checkpoints" / "8") for f in (killed, undisturbed))
    assert_same(ours.model, theirs.model)
    assert_same(ours.training, theirs.training)
    log = (killed / "train.log").read_text()
    assert "rank 0 of 2 lost another rank" in log
    assert log.count("resuming from checkpoint") == 2
    leftovers = [p.name for p in (killed / "checkpoints").iterdir() if p.name.startswith(".")]
    assert leftovers == []
