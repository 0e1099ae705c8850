"""Whole runs: what they write, how they stop, resume, and refuse wrong input."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from franca_fast.errors import FrancaError, InputError
from franca_fast.hub import load_model
from franca_fast.hub.checkpoint_files import read_checkpoint, steps_in
from franca_fast.training import PretrainResult, pretrain
from franca_fast.training.run import Run
from python_tests.training.tiny import TINY, assert_same, losses_of, start


def run(folder: Path, *overrides: str, **arguments: Any) -> PretrainResult:
    return pretrain(TINY, folder, overrides=overrides, verbose=False, **arguments)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Calls `action` within a step, before it trains."""
    train_on = Run.train_on

    def wrapped(self: Run, *arguments: Any, **keywords: Any) -> Any:
        if self.step == step:
            action()
        return train_on(self, *arguments, **keywords)

    monkeypatch.setattr(Run, "train_on", wrapped)


def send(name: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run(folder)
    assert (result.steps, result.stopped_by) == (8, None)
    return folder


def test_a_run_leaves_what_the_readme_lists(undisturbed: Path) -> None:
    assert sorted(path.name for path in undisturbed.iterdir() if path.name[0] != ".") == [
        "checkpoints",
        "config.yaml",
        "exported",
        "metrics.jsonl",
        "train.log",
    ]
    assert steps_in(undisturbed / "checkpoints") == [3, 6, 8]


def test_every_step_has_a_line_with_its_figures(undisturbed: Path) -> None:
    lines = [json.loads(text) for text in (undisturbed / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    expected = {"lr", "momentum", "grad_norm/ibot_head", "data_wait", "images_per_second"}
    assert expected | {"skipped_steps", "skipped_samples", "peak_memory_gb"} <= lines[0].keys()
    assert len(lines[0]["ibot_heads"]) == 5


def test_assignments_are_looked_at_at_intervals(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.log_every=3", "train.total_steps=4", "optim.warmup_epochs=0")
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    assert ["dino_entropy" in line for line in lines] == [False, False, True, True]


def test_the_log_holds_the_whole_configuration(undisturbed: Path) -> None:
    text = (undisturbed / "train.log").read_text()
    assert "momentum_teacher: 0.992" in text
    assert "step 8/8" in text


def test_the_exported_teacher_loads(undisturbed: Path) -> None:
    model = load_model(undisturbed)
    saved = read_checkpoint(undisturbed / "checkpoints" / "8").model["teacher"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[f"backbone.{name}"]), name


def test_the_same_seed_gives_the_same_losses(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert losses_of(tmp_path / "again") == losses_of(undisturbed)


def test_one_rank_of_torchrun_is_one_process(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    run(tmp_path / "torchrun")
    assert losses_of(tmp_path / "torchrun") == losses_of(undisturbed)


def test_another_seed_gives_other_losses(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "other", "train.seed=1")
    assert losses_of(tmp_path / "other")[1] != losses_of(undisturbed)[1]


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: signal.Signals
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 3, send(name))
        result = run(tmp_path / "run")
    assert (result.steps, result.stopped_by, result.exported) == (4, name.name, None)
    assert steps_in(tmp_path / "run" / "checkpoints") == [3, 4]
    assert run(tmp_path / "run").steps == 8
    assert losses_of(tmp_path / "run") == losses_of(undisturbed)


def test_ctrl_c_finishes_the_step_and_then_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 4, send(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert steps_in(tmp_path / "run" / "checkpoints") == [3, 5]


def test_a_second_ctrl_c_interrupts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert steps_in(tmp_path / "run" / "checkpoints") == [3]
    monkeypatch.undo()
    assert run(tmp_path / "run").steps == 8


def test_a_resume_with_other_workers_gives_the_same_losses(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGTERM))
        run(tmp_path / "run")
    run(tmp_path / "run", "train.num_workers=1")
    assert losses_of(tmp_path / "run") == losses_of(undisturbed)


def test_a_finished_run_stays_as_it_is(undisturbed: Path) -> None:
    before = losses_of(undisturbed)
    result = run(undisturbed)
    assert (result.steps, result.metrics["step"], result.stopped_by) == (8, 8, None)
    assert losses_of(undisturbed) == before


def test_a_resume_does_not_need_the_weights_that_the_run_began_with(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    for name in ("weights.safetensors", "weights.json"):
        (tmp_path / name).write_bytes(
            (undisturbed / "exported" / name.replace("weights", "teacher")).read_bytes()
        )
    override = f"student.pretrained_weights={weights}"
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGTERM))
        run(tmp_path / "run", override)
    weights.unlink()
    assert run(tmp_path / "run", override).steps == 8


def test_a_truncated_newest_checkpoint_is_passed_over(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGTERM))
        run(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "5" / "training.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "run")
    assert "checkpoints/5' is damaged" in caplog.text
    assert "checkpoints/3' instead" in caplog.text
    assert losses_of(tmp_path / "run") == losses_of(undisturbed)


def test_without_resume_a_run_starts_anew(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", "train.seed=1")
    run(tmp_path / "run", resume=False)
    assert losses_of(tmp_path / "run") == losses_of(undisturbed)
    assert (tmp_path / "run" / "previous-1" / "checkpoints" / "8").is_dir()


def test_another_configuration_is_refused(undisturbed: Path) -> None:
    with pytest.raises(InputError, match=r"train\.seed \(0 -> 5\)"):
        run(undisturbed, "train.seed=5")


def test_too_many_non_finite_steps_stop_the_run_and_keep_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_batches = Run.next_batches

    def poisoned(self: Run) -> Any:
        batches, waited = next_batches(self)
        if self.step >= 3:
            batches[-1].global_crops.fill_(float("nan"))
        return batches, waited

    monkeypatch.setattr(Run, "next_batches", poisoned)
    with pytest.raises(FrancaError, match=r"stopped after step 6: .* in the last 3 steps"):
        run(tmp_path / "run", "train.max_nonfinite_steps=3", "train.checkpoint_every=8")
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["finite"] for line in lines] == [True] * 3 + [False] * 3
    assert lines[-1]["skipped_steps"] == 3
    assert "stopped after step 6" in (tmp_path / "run" / "train.log").read_text()


def test_evaluations_are_called_and_recorded(tmp_path: Path) -> None:
    seen = []

    def evaluate(step: int, teacher: torch.nn.Module) -> dict[str, float]:
        seen.append((step, teacher.training))
        return {"knn": step / 10}

    run(tmp_path / "run", "evaluation.eval_period_iterations=3", evaluate=evaluate)
    assert seen == [(0, False), (3, False), (6, False), (8, False)]
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    found = [(line["step"], line["evaluation/knn"]) for line in lines if "evaluation/knn" in line]
    assert found == [(0, 0.0), (3, 0.3), (6, 0.6), (8, 0.8)]


def test_knn_accuracies_are_recorded_where_labelled_images_are_named(tmp_path: Path) -> None:
    for split, colours in (("train", (0, 40)), ("test", (10, 50))):
        for label, red in (("dark", colours[0]), ("bright", colours[1] + 150)):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(3):
                image = Image.new("RGB", (28, 28), (red + i, 20, 20))
                image.save(tmp_path / split / label / f"{i}.png")
    names = [f"evaluation.knn_{split}={tmp_path / split}" for split in ("train", "test")]
    run(
        tmp_path / "run",
        *names,
        "evaluation.eval_period_iterations=4",
        evaluate=lambda *_: {"x": 1},
    )
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    found = [line for line in lines if "evaluation/x" in line]
    assert [line["step"] for line in found] == [0, 4, 8]
    assert {f"evaluation/knn/{m}/10" for m in (2, 4, 8, 16, 32)} <= found[0].keys()
    assert 0 <= found[-1]["evaluation/knn/32/10"] <= 100
    log = (tmp_path / "run" / "train.log").read_text()
    assert "evaluation after step 8: knn/2/10 " in log


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.knn_train=/absent", "evaluation.knn_test=/absent"], "/absent"),
        (["evaluation.knn_train=/absent"], "accepted: both"),
    ],
)
def test_labelled_images_that_are_missing_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_images_trains(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30), (i * 40, 100, 200 - i * 30)).save(images / f"{i}.jpg")
    assert run(tmp_path / "run", f"train.dataset_path={images}").steps == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.dataset_path={tmp}/absent"], "absent"),
        (["train.dataset_path={tmp}/empty"], "empty"),
        (["student.pretrained_weights={tmp}/absent.pth"], "absent.pth"),
        (["train.device=cuda:42"], "train.device"),
        (["train.sede=1"], "train.seed"),
        (["crops.global_crops_size=30"], "multiple of the patch size 7"),
    ],
)
def test_wrong_input_writes_nothing(tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", *(text.format(tmp=tmp_path) for text in overrides))
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_a_run_that_never_trains_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.jpg").write_text("no image")
    with pytest.raises(FrancaError):
        run(tmp_path / "run", f"train.dataset_path={tmp_path / 'junk'}")
    assert not (tmp_path / "run").exists()


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
