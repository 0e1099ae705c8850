"""kill -9 at awkward moments: the run that starts again equals one that nothing disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from franca_fast.training.checkpoints.format import read_checkpoint
from python_tests.training.tiny import losses_of, start

# Starts one run again and again, each time in a fork that kills itself: before a step, or while
# its first checkpoint is being written. The parent only imports, so a fork is like a new process.
RUNS = """
import signal, sys
from franca_fast.training import pretrain
from franca_fast.training.checkpoints import writer as checkpoint_writer
from franca_fast.training.run import Run

killed, undisturbed = sys.argv[1:]
train_on, write = Run.train_on, checkpoint_writer._write_training
moment = None

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def killing_train_on(self, *arguments, **keywords):
    if moment == self.step:
        kill()
    return train_on(self, *arguments, **keywords)

def killing_write(path, content):
    if moment == "training.pt":
        kill()
    return write(path, content)

def launch(folder, workers):
    process = os.fork()
    if process == 0:
        overrides = [f"train.num_workers={workers}"]
        os._exit(pretrain(TINY, folder, overrides=overrides, verbose=False).steps)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

Run.train_on, checkpoint_writer._write_training = killing_train_on, killing_write
ends = []
# Before any checkpoint, with data workers that outlive the process for a moment; between two files
# of a checkpoint; before its second checkpoint; and at last not at all.
for moment, workers in ((1, 1), ("training.pt", 0), (5, 0), (None, 0)):
    ends.append(launch(killed, workers))
ends.append(launch(undisturbed, 0))
print(json.dumps(ends))
"""


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equality of nested containers with tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    else:
        assert one == other, where


@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    folders = tmp_path / "killed", tmp_path / "undisturbed"
    process = start(RUNS, *map(str, folders))
    output, errors = process.communicate()
    assert output == "[-9, -9, -9, 8, 8]\n", errors
    assert losses_of(folders[0]) == losses_of(folders[1])
    killed, undisturbed = (read_checkpoint(folder / "checkpoints" / "8") for folder in folders)
    assert_same(killed.model, undisturbed.model)
    assert_same(killed.training, undisturbed.training)
    names = [path.name for path in (folders[0] / "checkpoints").iterdir()]
    assert sorted(names) == ["3", "6", "8"]
