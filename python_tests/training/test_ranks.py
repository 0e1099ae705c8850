"""Training on 2 and 4 gloo ranks: what it computes, how it stops, and how it moves between them.

Starting processes takes seconds, so each number of ranks is started once and does many runs; the
tests then look at what the runs left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from franca_fast.config import load_config
from franca_fast.errors import InputError
from franca_fast.hub import load_model
from franca_fast.hub.checkpoint_files import (
    Checkpoint,
    load_newest,
    read_checkpoint,
    steps_in,
)
from franca_fast.training import pretrain
from franca_fast.training.checkpoints.writer import CheckpointWriter
from franca_fast.training.distributed.world import World
from franca_fast.training.run import Run
from franca_fast.training.run_directory import RunDirectory
from python_tests.helpers import run_ranks
from python_tests.training.tiny import TINY, assert_same, losses_of

pytestmark = pytest.mark.timeout(600)

STEPS, FEW = 20, 5
# Stochastic depth leaves out images of each rank, so that equality needs a rate of 0. Wider heads
# keep the tiny network's gradients from blowing up rounding errors.
EQUAL = [
    "student.drop_path_rate=0",
    "dino.head_hidden_dim=256",
    "ibot.head_hidden_dim=256",
    "dino.head_bottleneck_dim=64",
    "ibot.head_bottleneck_dim=64",
    f"train.total_steps={STEPS}",
    "train.checkpoint_every=10",
]
SHARDED = "train.parallel=sharded"
WHOLE = ("replicated", "sharded", "moved-to-1", "moved-to-4")
STREAMED = ["train.scores=streamed", "train.activation_checkpointing=true"]


def run(folder: Path, n_images: int, *overrides: str) -> dict[str, Any]:
    images = f"train.batch_size_per_gpu={n_images}"
    result = pretrain(TINY, folder, overrides=[*EQUAL, images, *overrides], verbose=False)
    return asdict(result)


def begin(folder: Path, n_images: int, *overrides: str, until: int = FEW) -> None:
    """The first steps of such a run, which shares its schedules with a whole one."""
    with at_step(until - 1, lambda *_: os.kill(os.getpid(), signal.SIGTERM)):
        assert run(folder, n_images, *overrides)["steps"] == until


def at_step(step: int, action: Callable[[Run, list[Any]], None]) -> Any:
    """Calls `action` before a step, within the block."""
    train_on = Run.train_on

    def wrapped(self: Run, batches: list[Any], **keywords: Any) -> Any:
        if self.step == step:
            action(self, batches)
        return train_on(self, batches, **keywords)

    return mock.patch.object(Run, "train_on", wrapped)


def poison(run: Run, batches: list[Any]) -> None:
    batches[0].global_crops[0] = float("nan")


def on_two_ranks(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    run(folder / "replicated", 4, "train.parallel=replicated")
    run(folder / "sharded", 4, SHARDED)
    begin(folder / "streamed", 4, SHARDED, *STREAMED)
    begin(folder / "accumulated", 2, SHARDED, "train.gradient_accumulation_steps=2")
    begin(folder / "centred", 4, SHARDED, "train.centering=centering")
    begin(folder / "bf16", 4, SHARDED, "compute_precision.autocast=bf16")
    # The scaler of fp16 finds its scale by leaving out the first steps.
    fp16 = ["compute_precision.autocast=fp16", "dino.normalize_bottleneck=false"]
    begin(folder / "fp16", 4, SHARDED, *fp16, until=14)
    with at_step(3, lambda run, _: os.kill(os.getpid(), signal.SIGTERM) if rank else None):
        stopped = run(folder / "stopped", 4, SHARDED)
    found = {"steps": stopped["steps"], "stopped_by": stopped["stopped_by"]}
    (folder / f"stopped.{rank}.json").write_text(json.dumps(found))
    every = ["train.checkpoint_every=1", "train.checkpoint_keep=9", "train.total_steps=5"]
    with at_step(3, poison if rank else lambda *_: None):
        run(folder / "poisoned", 4, SHARDED, *every)
    shown = []
    for overrides in (["train.wandb=x", "train.total_steps=2"], ["train.dataset_path=/absent"]):
        missing = mock.patch.dict("sys.modules", {"wandb": None})
        with pytest.raises(InputError) as error, missing:
            run(folder / "refused", 4, *overrides)
        shown.append(str(error.value))
    (folder / f"refused.{rank}.json").write_text(json.dumps(shown))


def on_four_ranks(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    begin(folder / "hybrid", 2, "train.shard_ranks=2")
    run(folder / "moved-to-4", 2, SHARDED)
    for source in ("one", "sharded", "replicated"):
        rewrite(folder / source, folder / f"{source}-by-4", SHARDED)


def rewrite(source: Path, target: Path, *overrides: str) -> None:
    """Loads a run's last checkpoint on the ranks that there are, and writes it again."""
    world = World.join("cpu", 1.0)
    images = f"train.batch_size_per_gpu={8 // world.size}"
    again = Run(load_config(TINY, [*EQUAL, images, *overrides]), world, fresh=False)
    checkpoint = load_newest(source / "checkpoints", world)
    assert checkpoint is not None
    writer = CheckpointWriter(target, keep=1, world=world)
    again.save(writer, again.resume(checkpoint))
    writer.wait()
    world.all_gather_object(None)
    again.close()


def move(source: Path, target: Path, step: int) -> None:
    """A run's folder as it was when the checkpoint of a step was written."""
    shutil.copytree(source, target)
    for later in steps_in(target / "checkpoints"):
        if later > step:
            shutil.rmtree(target / "checkpoints" / str(later))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    folder = tmp_path_factory.mktemp("ranks")
    run(folder / "one", 8)
    begin(folder / "one-centred", 8, "train.centering=centering")
    begin(folder / "one-accumulated", 4, "train.gradient_accumulation_steps=2")
    (folder / "2").mkdir()
    run_ranks(2, folder / "2", on_two_ranks, folder)
    move(folder / "sharded", folder / "moved-to-1", 10)
    move(folder / "sharded", folder / "moved-to-4", 10)
    (folder / "4").mkdir()
    run_ranks(4, folder / "4", on_four_ranks, folder)
    run(folder / "moved-to-1", 8)
    return folder


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("replicated", "one"),
        ("sharded", "one"),
        ("streamed", "one"),
        ("hybrid", "one"),
        ("moved-to-1", "one"),
        ("moved-to-4", "one"),
        ("accumulated", "one-accumulated"),
        ("centred", "one-centred"),
    ],
)
def test_ranks_with_a_batch_equal_one_process_with_all_images(
    runs: Path, name: str, reference: str
) -> None:
    found, expected = losses_of(runs / name), losses_of(runs / reference)
    steps = STEPS if name in WHOLE else FEW
    assert list(found) == list(range(1, steps + 1))
    for step, (total, *heads) in found.items():
        assert total == pytest.approx(expected[step][0], rel=1e-5), step
        for one, other in zip(heads, expected[step][1:], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5), step


def test_the_network_has_learnt_meanwhile(runs: Path) -> None:
    losses = losses_of(runs / "one")
    assert losses[1][0] - losses[STEPS][0] > 0.1


def test_accumulated_micro_batches_have_assignments_of_their_own(runs: Path) -> None:
    together, apart = losses_of(runs / "one"), losses_of(runs / "one-accumulated")
    assert together[1][0] != pytest.approx(apart[1][0], rel=1e-5)


@pytest.mark.parametrize("source", ["one", "sharded", "replicated"])
def test_a_checkpoint_loaded_on_other_ranks_holds_the_same_bits(runs: Path, source: str) -> None:
    before = read_checkpoint(runs / source / "checkpoints" / str(STEPS))
    after = read_checkpoint(runs / f"{source}-by-4" / str(STEPS))
    assert len(list(after.path.glob("*.safetensors"))) == 4
    assert_same_tensors(before, after)
    for key in ("loader", "scaler", "counters", "random"):
        assert_same(before.training[key], after.training[key])


def assert_same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    assert one.shapes == other.shapes
    for name in one.shapes:
        assert torch.equal(one.read(name), other.read(name)), name


def test_sharded_ranks_write_their_rows_only(runs: Path) -> None:
    path = runs / "sharded" / "checkpoints" / str(STEPS)
    sizes = [file.stat().st_size for file in sorted(path.glob("*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(runs: Path) -> None:
    for rank in (0, 1):
        found = json.loads((runs / f"stopped.{rank}.json").read_text())
        assert found == {"steps": 4, "stopped_by": "SIGTERM"}
    assert steps_in(runs / "stopped" / "checkpoints") == [4]


def test_a_non_finite_rank_makes_all_leave_the_step_out(runs: Path) -> None:
    lines = [json.loads(text) for text in (runs / "poisoned" / "metrics.jsonl").open()]
    assert [line["finite"] for line in lines] == [True, True, True, False, True]
    checkpoints = [read_checkpoint(runs / "poisoned" / "checkpoints" / str(s)) for s in (3, 4, 5)]
    assert_same_tensors(*checkpoints[:2])
    name = "student.backbone.norm.weight"
    assert not torch.equal(checkpoints[1].read(name), checkpoints[2].read(name))


def test_bf16_is_near_fp32_when_sharded(runs: Path) -> None:
    found, expected = losses_of(runs / "bf16"), losses_of(runs / "one")
    for step, (total, *_) in found.items():
        assert total == pytest.approx(expected[step][0], rel=0.02), step


def test_fp16_finds_its_scale_when_sharded(runs: Path) -> None:
    finite = [json.loads(text)["finite"] for text in (runs / "fp16" / "metrics.jsonl").open()]
    assert sum(finite) > 3
    assert finite[-1]
    checkpoint = read_checkpoint(runs / "fp16" / "checkpoints" / "14")
    assert checkpoint.training["scaler"]["scale"] == 2.0 ** (16 - finite.count(False))
    assert all(checkpoint.read(name).isfinite().all() for name in checkpoint.shapes)


def test_the_exported_teacher_is_whole(runs: Path) -> None:
    saved = read_checkpoint(runs / "sharded" / "checkpoints" / str(STEPS)).model["teacher"]
    for name, tensor in load_model(runs / "sharded").state_dict().items():
        assert torch.equal(tensor, saved[f"backbone.{name}"]), name


def test_rank_0_reports_for_all(runs: Path) -> None:
    line = json.loads((runs / "moved-to-4" / "metrics.jsonl").read_text().splitlines()[19])
    assert line["ranks"] == 4
    assert line["images_per_second"] == pytest.approx(4 * line["images_per_second_per_gpu"])
    assert line["slowest_rank"] in range(4)
    # Used prototypes and entropy are those of the whole batch, whatever the number of ranks.
    one = json.loads((runs / "one" / "metrics.jsonl").read_text().splitlines()[19])
    assert line["ibot_used_prototypes"] == one["ibot_used_prototypes"]
    assert line["dino_entropy"] == pytest.approx(one["dino_entropy"], rel=1e-4)


def test_errors_of_one_rank_are_raised_on_all(runs: Path) -> None:
    for rank in (0, 1):
        no_wandb, no_data = json.loads((runs / f"refused.{rank}.json").read_text())
        assert "franca-fast[wandb]" in no_wandb
        assert "/absent" in no_data
    assert not (runs / "refused").exists()


def test_images_of_a_step_change_only_with_the_ranks(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    move(runs / "one", tmp_path / "same", 10)
    with pytest.raises(InputError, match="8 images a step on 1 ranks before, 6 now"):
        run(tmp_path / "same", 6)
    move(runs / "sharded", tmp_path / "other", 10)
    begin(tmp_path / "other", 6, until=11)
    assert "8 images a step on 2 ranks before, 6 now" in caplog.text


def test_other_ranks_than_0_leave_the_folder_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run", load_config(TINY), resume=True, rank=1)
    directory.create()
    assert not (tmp_path / "run").exists()
    assert directory.log_file == tmp_path / "run" / "ranks" / "1.log"
