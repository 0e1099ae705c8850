"""Training on a GPU, as far as a machine without one shows it: devices, and waits of the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from franca_fast.losses import nested_dino
from franca_fast.models import ARCHITECTURES
from franca_fast.training import pretrain
from franca_fast.training.distributed.parallelize import parallelize
from franca_fast.training.distributed.world import World
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.precision import choose_device, choose_precision
from franca_fast.training.step import StepOutput, TrainStep
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.data.files import write_folder
from python_tests.fake_gpu import MixedDevices
from python_tests.fake_gpu_waits import NeedlessWait
from python_tests.training.test_step import VALUES
from python_tests.training.tiny import random_batch, tiny_config

# One block and two nested heads, as fake tensors are slow.
ARCHITECTURES.setdefault("vit_one", {"embed_dim": 32, "depth": 1, "num_heads": 2})
SMALL = ("train.device=cuda", "student.arch=vit_one", "dino.nesting_dims=[16,32]")
BF16 = "compute_precision.autocast=bf16"
KINDS = {
    "fp32": ["compute_precision.autocast=fp32"],
    "bf16": [BF16],
    "fp16 with its scaler": ["compute_precision.autocast=fp16"],
    "recomputed blocks": [BF16, "train.activation_checkpointing=true"],
    "streamed scores": [BF16, "train.scores=streamed"],
    "centering of micro-batches": [
        *(BF16, "train.centering=centering", "train.gradient_accumulation_steps=2"),
    ],
    "a shared head, centering of streamed scores": [
        *(BF16, "ibot.separate_head=false", "train.centering=centering", "train.scores=streamed"),
    ],
    "mlp, registers, neither local crops nor KoLeo": [
        *(BF16, "student.ffn_layer=mlp", "student.num_register_tokens=2"),
        *("crops.local_crops_number=0", "dino.koleo_loss_weight=0"),
    ],
    "image-level loss, no stochastic depth": [
        *(BF16, "ibot.loss_weight=0", "student.drop_path_rate=0"),
    ],
    "patch-level loss, other projections": [
        *(BF16, "dino.loss_weight=0", "dino.projection=full", "dino.normalize_bottleneck=false"),
    ],
}


class Case:
    def __init__(self, *overrides: str) -> None:
        self.config = tiny_config(*SMALL, *overrides)
        self.device = choose_device(self.config.train.device)
        with self.device:
            self.model = StudentTeacher(self.config).train()
        precision = choose_precision(self.config, self.device)
        layout = parallelize(self.model, self.config, World(), precision)
        optim = self.config.optim
        self.optimizer = LocalOptimizer(self.model.student, optim)
        self.train_step = TrainStep(
            self.model, self.optimizer, precision, layout, clip_grad=optim.clip_grad, seed=0
        )

    def step(self, number: int, *, diagnose: bool = False) -> StepOutput:
        micro_batches = self.config.train.gradient_accumulation_steps
        batches = [random_batch(self.config, seed=i) for i in range(micro_batches)]
        batches = [batch.pin_memory().to(self.device, non_blocking=True) for batch in batches]
        return self.train_step(number, batches, VALUES, diagnose=diagnose)


def _steps(kind: str) -> None:
    case = Case(*KINDS[kind])
    output = case.step(0, diagnose="streamed" in kind)
    if kind == "bf16":  # with what the first step has left
        output = case.step(1, diagnose=True)
    figures = (output.loss, output.finite, *output.norms.values(), *output.statistics.values())
    assert all(figure.device.type == "cuda" for figure in figures)
    assert all(parameter.device.type == "cuda" for parameter in case.model.parameters())
    trained = list(case.model.student.parameters())
    assert all(parameter.grad is not None for parameter in trained)
    assert len(case.optimizer.adamw.state) == len(trained)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_mixes_no_devices_and_never_waits(fake_gpu: Callable[..., Any], kind: str) -> None:
    assert fake_gpu(_steps, kind) == {}


DEFECTS: dict[str, tuple[Callable[[Tensor], Any], type[AssertionError]]] = {
    "cpu": (lambda x: x.cpu(), NeedlessWait),
    "item": (lambda x: x.sum().item(), NeedlessWait),
    "a tensor of the host": (lambda x: x + torch.ones(x.shape[1]), MixedDevices),
}


def _step_with_a_defect_in_the_loss(name: str) -> None:
    defect, _ = DEFECTS[name]
    loss = nested_dino.clustering_cross_entropy

    def planted(student: Any, *arguments: Any, **keywords: Any) -> Tensor:
        defect(student.values[0])
        return loss(student, *arguments, **keywords)

    with mock.patch.object(nested_dino, "clustering_cross_entropy", planted):
        Case(*KINDS["bf16"]).step(0)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_in_the_loss_is_found(fake_gpu: Callable[..., Any], name: str) -> None:
    with pytest.raises(DEFECTS[name][1], match=r"losses/nested_dino\.py: _cross_entropy, line"):
        fake_gpu(_step_with_a_defect_in_the_loss, name)


def _run(folder: Path, images: Path) -> None:
    overrides = [
        *(*SMALL, BF16),
        *("train.total_steps=3", "train.log_every=2", "train.checkpoint_every=2"),
        *(f"evaluation.knn_train={images}", f"evaluation.knn_test={images}"),
    ]
    result = pretrain(tiny_config(), folder, overrides=overrides, verbose=False)
    assert result.steps == 3 and result.exported is not None


def test_a_whole_run_waits_at_its_named_places_only(
    fake_gpu: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    waits = fake_gpu(_run, folder, write_folder(tmp_path / "images", ["a", "b"], 2))
    model = StudentTeacher(tiny_config(*SMALL[1:]))
    copied = [
        len(load_file(folder / "checkpoints" / step / "rank-00000.safetensors"))
        for step in ("2", "3")
    ]
    assert waits == {
        "training/run.py: __init__": len([*model.parameters(), *model.buffers()]),
        # Two evaluations of two sources, of which a batch goes there and its features come back.
        "evaluation/features.py: embed": 2 * 2 * 2,
        "training/reporting/metrics.py: to_numbers": 2,  # after steps 2 and 3, but not after step 1
        "training/checkpoints/writer.py: _copy": sum(copied),
        "hub/save.py: save_backbone": len(load_file(folder / "exported" / "teacher.safetensors")),
    }
