"""What a run on several ranks is made of, as far as one process shows it."""

from __future__ import annotations

import functools

import pytest
import torch

from franca_fast.config.files import load_config
from franca_fast.config.schema import Config, MixedPrecisionConfig
from franca_fast.errors import InputError
from franca_fast.training.distributed.parallelize import (
    Layout,
    is_sharded,
    parallelize,
    transport_dtypes,
)
from franca_fast.training.distributed.world import World
from franca_fast.training.precision import Precision
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import random_batch, tiny_config

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
PRECISION = Precision(torch.device("cpu"), FP32, scale_loss=False)


def world_of(size: int, rank: int = 0) -> World:
    """Ranks without a process group, for what only counts them."""
    world = World()
    world.size, world.rank = size, rank
    return world


def prepared(*overrides: str) -> tuple[Config, StudentTeacher]:
    torch.manual_seed(0)
    config = tiny_config("dino.MRL=false", *overrides)
    model = StudentTeacher(config).train()
    parallelize(model, config, World(), PRECISION)
    return config, model


def test_recomputed_blocks_give_the_same_gradients_stochastic_depth_included() -> None:
    gradients = []
    for recompute in ("false", "true"):
        config, model = prepared(f"train.activation_checkpointing={recompute}")
        torch.manual_seed(1)
        model(random_batch(config), 0.05).total.backward()
        gradients.append([parameter.grad for parameter in model.student.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_compiled_blocks_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    # Generating code takes minutes; that the blocks can be traced is what could break here.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    losses = []
    for compiled in ("false", "true"):
        config, model = prepared("student.drop_path_rate=0", f"train.compile={compiled}")
        losses.append(model(random_batch(config), 0.05).total)
        losses[-1].backward()
    assert torch.allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("parallel", "shard_ranks", "size", "expected"),
    [
        ("auto", "null", 4, False),  # small enough to be replicated
        ("auto", "2", 4, True),
        ("sharded", "null", 4, True),
        ("sharded", "null", 1, False),  # nothing to shard
        ("replicated", "null", 4, False),
    ],
)
def test_shards_are_chosen_by_configuration_and_size(
    parallel: str, shard_ranks: str, size: int, expected: bool
) -> None:
    config = tiny_config(f"train.parallel={parallel}", f"train.shard_ranks={shard_ranks}")
    assert is_sharded(StudentTeacher(config).student, config, world_of(size)) is expected


def test_large_students_are_sharded_by_themselves() -> None:
    student = torch.nn.Linear(20_000, 20_000, bias=False, device="meta")
    assert is_sharded(student, tiny_config(), world_of(2))


def test_shards_that_do_not_divide_the_ranks_are_refused() -> None:
    config = tiny_config("train.parallel=sharded", "train.shard_ranks=3")
    with pytest.raises(InputError, match="shard_ranks: 3; accepted: a divisor of 4"):
        parallelize(StudentTeacher(config), config, world_of(4), PRECISION)


@pytest.mark.parametrize(
    ("parameters", "reduced", "compute", "expected"),
    [
        ("fp16", "fp16", FP32, (FP32, FP32)),
        ("fp16", "fp16", FP16, (FP16, FP16)),
        ("fp16", "fp32", FP16, (FP16, FP32)),
        ("fp16", "fp16", BF16, (BF16, FP32)),
        ("fp16", "bf16", BF16, (BF16, BF16)),
        ("fp32", "fp32", BF16, (FP32, FP32)),
    ],
)
def test_types_between_ranks_follow_those_of_the_forward_pass(
    parameters: str, reduced: str, compute: torch.dtype, expected: tuple[torch.dtype, torch.dtype]
) -> None:
    assert transport_dtypes(MixedPrecisionConfig(parameters, reduced), compute) == expected


@pytest.mark.parametrize("strategy", ["NO_SHARD", "SHARD"])
def test_strategies_that_are_not_followed_are_refused(strategy: str) -> None:
    key = "compute_precision.student.backbone.sharding_strategy"
    with pytest.raises(InputError, match=key):
        load_config(None, [f"{key}={strategy}"])


def test_rows_of_shards_cover_a_tensor_once() -> None:
    for n_rows in (0, 1, 2, 5, 8):
        found: list[int] = []
        for shard in range(4):
            layout = Layout(world_of(4, shard))
            layout.n_shards, layout.shard = 4, shard
            found += range(*layout.rows(n_rows).indices(n_rows))
        assert found == list(range(n_rows))
