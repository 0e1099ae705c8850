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

from bench.gpu import record, report
from bench.gpu.parts import ROOT, Part

LOGS = "logs.zip"
_LOOK = 0.2  # seconds between looks at the processes
_REFRESH = 3.0  # seconds between writes of the report, and more when these take long
_SAID = 4000  # bytes of a log that go to the record
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Ends the groups of processes that are still named when its input ends: when the session, which
# holds the other end, was killed without a chance to end them.
_GUARD = """
import os, sys
groups = set()
for line in sys.stdin:
    groups ^= {int(line)}
for group in groups:
    try:
        os.killpg(group, 9)
    except ProcessLookupError:
        pass
"""


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
        out: the folder of the report. The record of an earlier session in it is continued.
        scratch: an empty folder on the same disk, for what is not yet whole.
        device: "cuda", or "cpu" for a dry run at tiny sizes.
        seconds: after so long no part begins, and what runs is ended.
    """

    def __init__(self, out: Path, scratch: Path, device: str, seconds: float) -> None:
        self.out, self.device = out, device
        self._deadline = time.monotonic() + seconds
        self._scratch, self._logs = scratch, scratch / "logs"
        for folder in (out, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        _unpack(out / LOGS, self._logs)
        self._next_refresh = 0.0
        self._stopped = 0  # the signal that told the session to stop
        self._running: list[Running] = []
        self._environment = os.environ | {
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
        names = [part.name for stage in stages for part in stage]
        record.append(self.out, {"part": record.SESSION, "device": self.device})
        for name in names:  # at once, so that a session that is killed says what it did not come to
            record.append(self.out, {"part": name, "state": "waiting"})
        self.refresh(now=True)
        # Told to stop, it still ends what it started and says how far it came.
        # What is ignored stays so: nohup means that the session outlives its terminal.
        heeded = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._stop) for number in heeded}
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            for stage in stages:
                for part in stage:
                    self._start(part)
                while self._running:
                    time.sleep(_LOOK)
                    for one in list(self._running):
                        self._look_at(one)
                    self.refresh()
        finally:
            try:
                for one in list(self._running):
                    self._finish(one, "interrupted")
                self.refresh(now=True)
            finally:  # also when nothing can be written: the guard ends what still runs
                self._guard.communicate()
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self._stopped:
            sys.exit(128 + self._stopped)
        return report.all_well([row for row in record.read(self.out) if row["part"] in names])

    def refresh(self, now: bool = False) -> None:
        """Writes the table and the archive of logs anew, if that was a while ago."""
        begin = time.monotonic()
        if not now and begin < self._next_refresh:
            return
        table, logs = self._scratch / report.TABLE, self._scratch / LOGS
        table.write_text(report.table(record.read(self.out)))
        with zipfile.ZipFile(logs, "w", zipfile.ZIP_DEFLATED) as archive:
            for log in sorted(self._logs.iterdir()):
                archive.write(log, log.name)
        for file in (table, logs):
            file.replace(self.out / file.name)  # at once: a reader never meets half of it
        end = time.monotonic()
        self._next_refresh = end + max(_REFRESH, 5 * (end - begin))

    def _start(self, part: Part) -> None:
        why = "interrupted" if self._stopped else "out of time"
        if self._stopped or time.monotonic() > self._deadline - 1:
            record.append(self.out, {"part": part.name, "state": "not run", "why": why})
            return
        log = self._logs / f"{part.name.replace(' ', '_')}.log"
        with log.open("wb") as output:
            record.append(self.out, {"part": part.name, "state": "begun"})
            self.refresh(now=True)
            process = subprocess.Popen(
                part.command(self.device),
                cwd=ROOT,
                env=self._environment | {record.PART: part.name} | part.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it started ends with it
            )
        self._running.append(Running(part, process, log, time.monotonic()))
        self._tell_guard(process.pid)

    def _tell_guard(self, group: int) -> None:
        """Adds a group of processes to those that the guard ends, or takes it out."""
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(b"%d\n" % group)
            self._guard.stdin.flush()

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = number

    def _look_at(self, one: Running) -> None:
        status, now = one.process.poll(), time.monotonic()
        if status is not None:
            self._finish(one, f"status {status}" if status else "")
        elif self._stopped:
            self._finish(one, "interrupted")
        elif now > min(one.started + one.part.seconds, self._deadline):
            self._finish(one, "out of time")

    def _finish(self, one: Running, why: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        self._tell_guard(one.process.pid)
        self._running.remove(one)
        row = {"part": one.part.name, "seconds": round(time.monotonic() - one.started, 1)}
        if why:
            with one.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _SAID))
                said = log.read().decode(errors="replace").strip()
            record.append(self.out, {**row, "state": "failed", "why": why, "said": said})
        else:
            record.append(self.out, {**row, "state": "done"})


def _unpack(archive: Path, folder: Path) -> None:
    """The logs of earlier sessions; an archive that cannot be read is put aside."""
    if not archive.exists():
        return
    try:
        with zipfile.ZipFile(archive) as old:
            old.extractall(folder)
    except Exception as error:  # zipfile raises ten kinds of them for bytes that it did not expect
        aside = archive.with_name(f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{archive.name}")
        archive.replace(aside)
        print(f"python -m bench.gpu: {archive} cannot be read ({error!r}); it is now {aside.name}")
        shutil.rmtree(folder)  # half a log would pass for a whole one
        folder.mkdir()
