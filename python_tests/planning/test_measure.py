"""What a step keeps and computes, against real steps at small sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from franca_fast.config.data import mean_masked_patches
from franca_fast.config.schema import Config
from franca_fast.planning.measure import (
    build_without_storage,
    crop_lists,
    measure_step,
    step_flops,
)
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import random_batch, tiny_config


def batch_of(config: Config) -> Any:
    """A real batch with exactly as many masked patches as the plan takes."""
    batch = random_batch(config, config.train.batch_size_per_gpu)
    n_masked = mean_masked_patches(config)
    masks = torch.zeros(batch.masks.numel(), dtype=torch.bool)
    masks[:n_masked] = True
    batch.masks = masks.view_as(batch.masks)
    batch.mask_indices = torch.arange(n_masked)
    batch.mask_weights = torch.full((n_masked,), 0.1)
    return batch


def kept_bytes(model: StudentTeacher, config: Config, dtype: torch.dtype) -> int:
    """Everything that a real forward pass keeps for the backward pass, without parameters."""
    batch = batch_of(config)
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    known |= {t.untyped_storage().data_ptr() for t in vars(batch).values() if torch.is_tensor(t)}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), hooks:
        losses = model(batch, 0.07)
    assert losses.total.isfinite()
    return sum(
        tensor.untyped_storage().nbytes() for key, tensor in found.items() if key not in known
    )


@pytest.fixture
def config() -> Config:
    # Rates above and below the threshold of stochastic depth go the same way in packed crops.
    return tiny_config("train.batch_size_per_gpu=6", "student.num_register_tokens=2")


def planned_bytes(config: Config, dtype: torch.dtype, streamed: bool) -> int:
    kept = measure_step(build_without_storage(config), config, dtype, "cpu")
    scores = kept.streamed_scores if streamed else kept.stored_scores
    copies = kept.streamed_copies if streamed else kept.stored_copies
    return kept.backbone + kept.projections + scores + copies


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_forward_pass_keeps_is_exact(config: Config, streamed: bool) -> None:
    model = StudentTeacher(config).train()
    model.streamed_scores = streamed
    measured = kept_bytes(model, config, torch.float32)
    assert planned_bytes(config, torch.float32, streamed) == measured


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_forward_pass_in_bf16_keeps_is_exact(config: Config, streamed: bool) -> None:
    model = StudentTeacher(config).train()
    model.streamed_scores = streamed
    measured = kept_bytes(model, config, torch.bfloat16)
    # On fake CPU tensors the two statistics of a layer norm's row come in bf16, in fact in float32.
    tokens = crop_lists(config)
    kept_tokens = sum(max(1, int(n * 0.7)) * length for n, length in tokens)
    rows = 3 * kept_tokens  # the last block adds to the tokens asked for in float32
    assert measured - planned_bytes(config, torch.bfloat16, streamed) == 2 * 2 * rows


def test_on_a_gpu_layer_norms_keep_float32_inputs(config: Config) -> None:
    on_cpu, on_gpu = (
        measure_step(build_without_storage(config), config, torch.bfloat16, device)
        for device in ("cpu", "cuda")
    )
    assert on_cpu.backbone < on_gpu.backbone < 1.5 * on_cpu.backbone


def attention_flops(qkv: tuple[int, ...], runs: list[int], *_: Any, **__: Any) -> int:
    _, _, heads, head_dim = qkv
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return 4 * heads * head_dim * sum(images * tokens**2 for tokens, images in pairs)


def test_forward_operations_are_those_that_pytorch_counts() -> None:
    config = tiny_config("student.drop_path_rate=0", "crops.local_crops_number=0")
    model = StudentTeacher(config)
    flops = step_flops(model, config)
    batch = random_batch(config, config.train.batch_size_per_gpu)
    attention = {torch.ops.franca_fast.varlen_attention_qkv: attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        patches = torch.arange(mean_masked_patches(config))
        model.teacher.backbone.forward_features(batch.global_crops, patches=patches)
    assert flops["teacher"] == counter.get_total_flops()
    assert flops["student"] == flops["teacher"]
    heads = FlopCounterMode(display=False)
    rows = {
        "dino_head": 2 * config.train.batch_size_per_gpu,
        "ibot_head": mean_masked_patches(config),
    }
    with heads:
        for name, n_rows in rows.items():
            getattr(model.student, name).bottlenecks(torch.randn(n_rows, 32))
    assert flops["heads"] == 2 * heads.get_total_flops()
    assert flops["backward"] == 2 * flops["student"] + flops["heads"]
    prototypes = sum(
        p.numel() * rows[n.split(".")[0]]
        for n, p in model.student.named_parameters()
        if n.endswith("weight_v")
    )
    assert flops["scores"] == 2 * prototypes * 4


def test_stochastic_depth_leaves_out_its_share() -> None:
    # Of the few tokens that the last block computes it leaves out none, so there are more blocks.
    deep = "student.arch=vit_nano"
    half, none = (
        step_flops(StudentTeacher(c), c)["student"]
        for c in (tiny_config(deep, f"student.drop_path_rate={rate}") for rate in (0.5, 0.0))
    )
    assert 0.4 * none < half < 0.6 * none
