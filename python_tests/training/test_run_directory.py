"""When a folder may be used, resumed, or must be left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from franca_fast.config.files import load_config
from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.training.run_directory import RunDirectory


def started(path: Path, *overrides: str, resume: bool = True) -> RunDirectory:
    directory = RunDirectory(path, load_config(None, overrides), resume=resume)
    directory.create()
    return directory


def test_nothing_is_written_before_create(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run", Config(), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_create_writes_the_whole_configuration(tmp_path: Path) -> None:
    directory = started(tmp_path / "new" / "run", "train.seed=4")
    directory.close()
    assert load_config(directory.config_file) == load_config(None, ["train.seed=4"])


def test_the_same_configuration_is_resumed(tmp_path: Path) -> None:
    started(tmp_path / "run").close()
    directory = RunDirectory(tmp_path / "run", load_config(None), resume=True)
    directory.close()
    assert directory.has_run


def test_another_configuration_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    started(tmp_path / "run").close()
    changed = load_config(None, ["train.seed=1", "optim.epochs=50"])
    with pytest.raises(InputError) as caught:
        RunDirectory(tmp_path / "run", changed, resume=True)
    assert "train.seed (0 -> 1), optim.epochs (100 -> 50)" in str(caught.value)


def test_without_resume_the_earlier_run_is_moved_aside(tmp_path: Path) -> None:
    directory = started(tmp_path / "run")
    directory.metrics_file.write_text("{}\n")
    directory.close()
    started(tmp_path / "run", "train.seed=1", resume=False).close()
    aside = tmp_path / "run" / "previous-1"
    assert sorted(path.name for path in aside.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
    ]
    assert not directory.metrics_file.exists()


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds no run \(it contains 'thesis.tex'\)"):
        RunDirectory(tmp_path, Config(), resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        RunDirectory(tmp_path / "run", Config(), resume=True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    directory = RunDirectory(tmp_path / "file" / "run", Config(), resume=True)
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        directory.create()


def test_a_folder_whose_process_died_before_its_configuration_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on x\n")
    (tmp_path / "checkpoints").mkdir()
    started(tmp_path).close()


def test_a_folder_in_use_by_this_process_is_refused(tmp_path: Path) -> None:
    directory = started(tmp_path / "run")
    with pytest.raises(InputError, match="in use by this process"):
        RunDirectory(tmp_path / "run", Config(), resume=True)
    directory.close()
    RunDirectory(tmp_path / "run", Config(), resume=True).close()


def test_a_folder_in_use_by_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import time
from franca_fast.config.schema import Config
from franca_fast.training.run_directory import RunDirectory
directory = RunDirectory({str(tmp_path / "run")!r}, Config(), resume=True)
directory.create()
print("ready", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match=f"in use by another process .process {other.pid} "):
            RunDirectory(tmp_path / "run", Config(), resume=True)
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    RunDirectory(tmp_path / "run", Config(), resume=True).close()
