"""High-resolution fine-tuning: what it starts from, what it leaves, and how it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import franca_fast
from franca_fast.config import load_config
from franca_fast.errors import InputError
from franca_fast.hub import load_model
from franca_fast.hub.checkpoint_files import read_checkpoint
from franca_fast.training import finetune, pretrain
from franca_fast.training.initial_weights import load_initial_weights
from franca_fast.training.run import Run
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import TINY, assert_same, losses_of, start

# Four times the patches of the tiny run, and a shorter schedule.
STAGE: dict[str, Any] = {
    **TINY,
    "crops": {**TINY["crops"], "global_crops_size": 56, "local_crops_size": 28},
    "optim": {"epochs": 2, "warmup_epochs": 1, "layerwise_decay": 1.0, "lr": 1e-4},
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run, at 28 pixels."""
    folder = tmp_path_factory.mktemp("finetune") / "run"
    pretrain(TINY, folder, overrides=["train.total_steps=3"], verbose=False)
    return folder


def positions(folder: Path) -> int:
    """Positions in the exported model's embedding."""
    return load_model(folder).pos_embed.shape[1] - 1


def test_two_stages_chain(pretrained: Path, tmp_path: Path) -> None:
    first = finetune(pretrained, STAGE, tmp_path / "56px", verbose=False)
    second = finetune(
        first.output_dir,
        STAGE,
        tmp_path / "84px",
        img_size=84,
        overrides=["train.total_steps=2"],
        verbose=False,
    )
    assert [positions(p) for p in (pretrained, first.output_dir, second.output_dir)] == [
        16,
        64,
        144,
    ]
    assert (first.steps, second.steps) == (4, 2)
    assert first.exported is not None and second.exported is not None


def test_it_starts_from_student_teacher_and_heads_with_a_new_optimizer(
    pretrained: Path, tmp_path: Path
) -> None:
    before = read_checkpoint(pretrained / "checkpoints" / "3")
    config = load_config(STAGE, [f"MODEL.WEIGHTS={pretrained}"])
    run = Run(config)
    try:
        assert run.step == 0
        assert not run.optimizer.adamw.state
        for name in ("student", "teacher"):
            network = getattr(run.model, name).state_dict()
            resized = network.pop("backbone.pos_embed")
            assert resized.shape == (1, 65, 32)
            expected = dict(before.model[name])
            assert expected.pop("backbone.pos_embed").shape == (1, 17, 32)
            assert_same(network, expected, name)
    finally:
        run.close()


def test_the_resized_positions_are_those_that_the_model_would_interpolate(
    pretrained: Path,
) -> None:
    config = load_config(STAGE, [f"MODEL.WEIGHTS={pretrained}"])
    model = StudentTeacher(config)
    load_initial_weights(model, config)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = load_model(pretrained)(images)
        assert torch.allclose(model.teacher.backbone(images), expected, atol=1e-5)


def test_positions_are_not_interpolated_in_a_step(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    interpolate = torch.nn.functional.interpolate

    def counting(x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return interpolate(x, **arguments)

    monkeypatch.setattr("franca_fast.models.vision_transformer.F.interpolate", counting)
    no_local = ["crops.local_crops_number=0", "train.total_steps=2"]
    finetune(pretrained, STAGE, tmp_path / "run", overrides=no_local, verbose=False)
    # Once for the student and once for the teacher, from 4 x 4, when the run begins.
    assert calls == [(1, 32, 4, 4)] * 2


def test_the_configuration_records_what_it_started_from(pretrained: Path, tmp_path: Path) -> None:
    # What a released file names is replaced by the argument.
    other = ["student.pretrained_weights=/data/teacher_checkpoint.pth", "train.total_steps=2"]
    result = franca_fast.finetune(
        pretrained, STAGE, tmp_path / "run", overrides=other, verbose=False
    )
    saved = load_config(result.output_dir / "config.yaml")
    assert str(pretrained) == saved.MODEL.WEIGHTS
    assert saved.student.pretrained_weights == ""
    assert saved.train.high_resolution_finetune


def test_it_resumes_from_another_folder_and_without_the_weights(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").symlink_to(pretrained)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    short = ["train.total_steps=2"]
    finetune("weights", STAGE, tmp_path / "run", overrides=short, verbose=False)
    (tmp_path / "weights").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = finetune("../weights", STAGE, tmp_path / "run", overrides=short, verbose=False)
    assert again.steps == 2


def test_weights_of_another_network_leave_no_folder(pretrained: Path, tmp_path: Path) -> None:
    wider = ["student.arch=vit_nano"]
    with pytest.raises(InputError, match=r"student\.arch is vit_nano"):
        finetune(pretrained, STAGE, tmp_path / "run", overrides=wider, verbose=False)
    assert not (tmp_path / "run").exists()


def test_a_size_that_does_not_fit_is_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="global_crops_size: 50 is not a multiple"):
        finetune(pretrained, STAGE, tmp_path / "run", img_size=50, verbose=False)


def test_a_run_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="run' holds neither a checkpoint nor"):
        finetune(tmp_path / "run", STAGE, tmp_path / "fine", verbose=False)


def test_weights_that_are_not_there_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent': no such file or folder"):
        finetune(tmp_path / "absent", STAGE, tmp_path / "run", verbose=False)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import signal, sys
from franca_fast.training import finetune
from franca_fast.training.run import Run
from python_tests.training.test_finetune import STAGE

weights, killed, undisturbed = sys.argv[1:]
train_on, moment = Run.train_on, None

def killing(self, *arguments, **keywords):
    if moment == self.step:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_on(self, *arguments, **keywords)

def launch(folder):
    process = os.fork()
    if process == 0:
        overrides = ["train.checkpoint_every=2", "train.total_steps=5"]
        os._exit(finetune(weights, STAGE, folder, overrides=overrides, verbose=False).steps)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

Run.train_on = killing
ends = []
for moment in (1, 3, None):
    ends.append(launch(killed))
ends.append(launch(undisturbed))
print(json.dumps(ends))
"""


@pytest.mark.timeout(600)
def test_kill_9_changes_nothing(pretrained: Path, tmp_path: Path) -> None:
    folders = tmp_path / "killed", tmp_path / "undisturbed"
    output, errors = start(KILLED, str(pretrained), *map(str, folders)).communicate()
    assert output == "[-9, -9, 5, 5]\n", errors
    assert losses_of(folders[0]) == losses_of(folders[1])
    killed, undisturbed = (read_checkpoint(folder / "checkpoints" / "5") for folder in folders)
    assert_same(killed.model, undisturbed.model)
    assert_same(killed.training, undisturbed.training)
