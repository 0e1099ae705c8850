"""The folder of a run: what is in it, who may use it, and when it is resumed.

config.yaml  train.log  metrics.jsonl  tensorboard/  checkpoints/<step>/  exported/
ranks/<rank>.log: warnings of ranks other than 0
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

from franca_fast.config.files import differing_keys, load_config, to_yaml
from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.files import atomic_path
from franca_fast.hub.checkpoint_files import steps_in
from franca_fast.paths import why_unreadable

_LOCK = ".lock"
_CONTENTS = (
    "config.yaml",
    "train.log",
    "ranks",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "exported",
)

# POSIX locks belong to the process, so they say nothing about two runs within one.
_locked_here: set[Path] = set()


class RunDirectory:
    """A run's folder, checked and locked for one process.

    Nothing is written before `create`, so that a caller can first check everything else that may
    be wrong. The lock is one of the operating system's: a process that is killed frees it.

    Args:
        path: the folder; it may be missing.
        config: the configuration of the run about to begin.
        resume: go on with a run that is there; otherwise it is moved aside by `create`.
        rank: of this process; only rank 0 checks, locks and makes the folder.

    Raises:
        InputError: the path is a file, is in use, holds other things than a run, or holds a run
            of another configuration.

    Attributes:
        path: the folder.
        has_run: whether a run was found there.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: Config, *, resume: bool, rank: int = 0
    ) -> None:
        self.path = Path(path).absolute()
        self._rank = rank
        self._config = config
        self._resume = resume
        self._lock: IO[str] | None = None
        self._made = False
        self.has_run = os.path.isfile(self.config_file)
        if rank != 0:
            return
        if os.path.lexists(self.path) and (reason := why_unreadable(self.path)):
            raise InputError(f"output directory '{self.path}': {reason}")
        if os.path.isfile(self.path):
            raise InputError(f"output directory: '{self.path}' is a file; accepted: a folder")
        if (self.path / _LOCK).exists():
            self._take_lock()
        try:
            self._check()
        except InputError:
            self.close()
            raise

    @property
    def config_file(self) -> Path:
        """The complete configuration, as `load_config` reads it."""
        return self.path / "config.yaml"

    @property
    def log_file(self) -> Path:
        """Everything that the run said; for other ranks than 0, what each warned of."""
        if self._rank:
            return self.path / "ranks" / f"{self._rank}.log"
        return self.path / "train.log"

    @property
    def metrics_file(self) -> Path:
        """One JSON line for each step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One folder for each checkpoint, named by its step."""
        return self.path / "checkpoints"

    @property
    def exported(self) -> Path:
        """Teacher backbones as safetensors and JSON."""
        return self.path / "exported"

    @property
    def resumes(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self._resume and self.has_run and bool(steps_in(self.checkpoints))

    def create(self) -> None:
        """Makes and locks the folder, moves a run aside that is not resumed, writes config.yaml.

        Raises:
            InputError: the folder cannot be written, or another process was faster.
        """
        if self._rank:
            return
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._take_lock()
            if self.has_run and not self._resume:
                self._move_aside()
            self.checkpoints.mkdir(exist_ok=True)
            with atomic_path(self.config_file) as temporary:
                temporary.write_text(to_yaml(self._config), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"output directory '{self.path}' cannot be written: {error.strerror or error}"
            ) from error

    def remove_unstarted(self) -> None:
        """Removes a folder that `create` made and in which nothing was measured or saved."""
        measured = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        if self._made and not measured and not steps_in(self.checkpoints):
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Frees the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            _locked_here.discard(self.path)

    def _check(self) -> None:
        if os.path.lexists(self.config_file) and (reason := why_unreadable(self.config_file)):
            raise InputError(
                f"output directory '{self.path}' holds a run whose config.yaml cannot be read: "
                f"{reason}"
            )
        if self.has_run and self._resume:
            differing = differing_keys(load_config(self.config_file), self._config)
            if differing:
                raise InputError(
                    f"output directory '{self.path}' holds a run of another configuration: "
                    f"{', '.join(differing)}; restore these values to resume it, or choose another "
                    "directory"
                )
        elif not self.has_run and self.path.is_dir():
            names = {entry.name for entry in self.path.iterdir()}
            # What `create` leaves when it is killed in the middle.
            others = sorted(
                n for n in names - {_LOCK, "checkpoints"} if not n.startswith(".config-")
            )
            if others:
                raise InputError(
                    f"output directory '{self.path}' is not empty and holds no run (it contains "
                    f"'{others[0]}'); choose another directory"
                )

    def _take_lock(self) -> None:
        if self.path in _locked_here:
            raise InputError(f"output directory '{self.path}' is in use by this process")
        lock = (self.path / _LOCK).open("a+", encoding="utf-8")
        try:
            # Not flock: forked data workers would keep it for a while after a killed run.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise InputError(
                f"output directory '{self.path}' is in use by another process ({holder})"
            ) from error
        except OSError:
            # Some network filesystems have no locks; a run there goes unguarded.
            pass
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        self._lock = lock
        _locked_here.add(self.path)

    def _move_aside(self) -> None:
        number = 1
        while (self.path / f"previous-{number}").exists():
            number += 1
        aside = self.path / f"previous-{number}"
        aside.mkdir()
        for name in _CONTENTS:
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        self.has_run = False
