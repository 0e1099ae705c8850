"""The keys of the configuration: their defaults, and what follows from them."""

from __future__ import annotations

import math

import pytest

from franca_fast.config.files import load_config
from franca_fast.config.schema import Config
from franca_fast.config.setting import settings
from franca_fast.errors import InputError

# A promise to users: with any of these changed a run goes on.
RESUMABLE = """
train.output_dir train.device train.num_workers train.batch_size_per_gpu
train.gradient_accumulation_steps train.fewer_threads_when_busy train.activation_checkpointing
train.parallel train.shard_ranks
train.timeout_minutes train.saveckp_freq train.checkpoint_every train.checkpoint_minutes
train.checkpoint_keep train.log_every train.tensorboard train.wandb train.max_nonfinite_steps
train.max_bad_fraction evaluation.eval_period_iterations evaluation.knn_train evaluation.knn_test
evaluation.protocols
"""


def test_what_may_change_on_resume() -> None:
    found = {key for key, _, accepts in settings(Config()) if accepts.resumable}
    assert found == set(RESUMABLE.split())


def test_every_default_is_accepted() -> None:
    for key, value, accepts in settings(Config()):
        accepts.check(key, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(value: float) -> None:
    for key, default, accepts in settings(Config()):
        if isinstance(default, float):
            with pytest.raises(InputError, match=f"{key}: .*accepted: finite numbers"):
                accepts.check(key, value)
        elif isinstance(default, list):
            with pytest.raises(InputError, match=f"{key}: .*accepted: finite numbers"):
                accepts.check(key, [*default[:-1], value])


def test_default_nesting_dims_are_francas() -> None:
    config = load_config(None, ["student.arch=vit_base"])
    assert config.nesting_dims == (48, 96, 192, 384, 768)


def test_without_mrl_there_is_one_dimension() -> None:
    assert load_config(None, ["dino.MRL=false"]).nesting_dims == (1024,)
