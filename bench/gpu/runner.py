"""Runs the parts of a session, each a process with a time limit, and keeps the report up to date.

The report (rows.jsonl, report.md, logs.zip) is whole at every moment: parts append their rows as
they find them, and the table and the archive of logs are written anew while a part still runs. So a
session that is killed leaves what was done, and says what was not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import record, report
from .parts import ROOT, Part

LOGS = "logs.zip"
_LOOK = 0.2  # seconds between looks at the processes
_REFRESH = 3.0  # seconds between writes of the report


@dataclass
class Running:
    """A part that is running."""

    part: Part
    process: subprocess.Popen[bytes]
    log: Path
    started: float


class Session:
    """Runs parts one stage after the other and writes the report to a folder.

    Args:
        out: the folder of the report.
        scratch: a folder for the logs until they are in the archive, emptied first.
        device: "cuda", or "cpu" for a dry run at tiny sizes.
        seconds: after so long no part begins, and what runs is ended.
    """

    def __init__(self, out: Path, scratch: Path, device: str, seconds: float) -> None:
        self.out, self.device = out, device
        self._deadline = time.monotonic() + seconds
        self._logs = scratch / "logs"
        shutil.rmtree(self._logs, ignore_errors=True)
        for folder in (out, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._refreshed = 0.0
        self.environment = os.environ | {
            record.FOLDER: str(out),
            "FRANCA_FAST_TEST_DEVICE": device,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, stages: Sequence[Sequence[Part]]) -> bool:
        """Runs all stages; the parts of a stage at the same time.

        Returns:
            Whether everything ended well.
        """
        # Told to stop, it still ends what it started and says how far it came.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _stop)
        running: list[Running] = []
        try:
            for stage in stages:
                running = [started for part in stage if (started := self._start(part))]
                while running:
                    time.sleep(_LOOK)
                    running = [one for one in running if not self._ended(one)]
                    self.refresh()
        finally:
            for one in running:
                self._finish(one, "interrupted")
            self.refresh(now=True)
        return report.all_well(record.read(self.out))

    def refresh(self, now: bool = False) -> None:
        """Writes the table and the archive of logs anew, if that was a while ago."""
        if not now and time.monotonic() - self._refreshed < _REFRESH:
            return
        table, logs = self._logs.parent / report.TABLE, self._logs.parent / LOGS
        table.write_text(report.table(record.read(self.out)))
        with zipfile.ZipFile(logs, "w", zipfile.ZIP_DEFLATED) as archive:
            for log in sorted(self._logs.iterdir()):
                archive.write(log, log.name)
        for file in (table, logs):
            part = self.out / f".{file.name}"
            shutil.copyfile(file, part)
            part.replace(self.out / file.name)  # at once: a reader never meets half of it
        self._refreshed = time.monotonic()

    def _start(self, part: Part) -> Running | None:
        left = self._deadline - time.monotonic()
        if left <= 1:
            record.append(self.out, {"part": part.name, "state": "not run", "why": "out of time"})
            return None
        record.append(self.out, {"part": part.name, "state": "begun"})
        log = self._logs / f"{part.name.replace(' ', '_')}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                part.command(self.device),
                cwd=ROOT,
                env=self.environment | {record.PART: part.name} | part.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it started ends with it
            )
        self.refresh(now=True)
        return Running(part, process, log, time.monotonic())

    def _ended(self, one: Running) -> bool:
        status, now = one.process.poll(), time.monotonic()
        if status is None and now < min(one.started + one.part.seconds, self._deadline):
            return False
        why = "" if status == 0 else "out of time" if status is None else f"status {status}"
        self._finish(one, why)
        return True

    def _finish(self, one: Running, why: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        row = {"part": one.part.name, "seconds": round(time.monotonic() - one.started, 1)}
        if why:
            said = one.log.read_bytes()[-4000:].decode(errors="replace").strip()
            record.append(self.out, {**row, "state": "failed", "why": why, "said": said})
        else:
            record.append(self.out, {**row, "state": "done"})


def _stop(number: int, frame: object) -> None:
    sys.exit(128 + number)
