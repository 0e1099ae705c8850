"""A training process with ranks for tests: `torchrun ... -m python_tests.training.ranks`.

    ranks.py OUTPUT_DIR KILLS [a.b=c ...]

KILLS is JSON: for each attempt of torchrun, [step, ranks], where the ranks kill themselves with
SIGKILL before that step; or ["checkpoint", ranks], while the first checkpoint is being written.
Attempts beyond the list are left alone. It goes through the command line, as users do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from franca_fast.cli.main import entry
from franca_fast.training.checkpoints import writer as checkpoint_writer
from franca_fast.training.run import Run
from python_tests.training.tiny import TINY


def kill_at(moment: int | str, ranks: list[int]) -> None:
    """Arranges that this process kills itself at a moment, if its rank is listed."""
    if int(os.environ.get("RANK", "0")) not in ranks:
        return
    train_on, write = Run.train_on, checkpoint_writer.make_durable

    def killing_train_on(self: Run, *arguments: Any, **keywords: Any) -> Any:
        if self.step == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_on(self, *arguments, **keywords)

    def killing_write(path: Path) -> None:
        if moment == "checkpoint":
            os.kill(os.getpid(), signal.SIGKILL)
        write(path)

    Run.train_on = killing_train_on  # type: ignore[method-assign]
    checkpoint_writer.make_durable = killing_write


def main() -> int:
    torch.set_num_threads(1)
    folder, kills, *overrides = sys.argv[1:]
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    listed = json.loads(kills)
    if attempt < len(listed):
        kill_at(*listed[attempt])
    config = Path(folder).with_suffix(f".{os.environ.get('RANK', '0')}.yaml")
    config.write_text(OmegaConf.to_yaml(OmegaConf.create(TINY)))
    sys.argv[1:] = ["pretrain", "--config-file", str(config), "--output-dir", folder, *overrides]
    return entry()


if __name__ == "__main__":
    raise SystemExit(main())
