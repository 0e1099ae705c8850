"""Pretraining and fine-tuning: the loop of a run, and what it is made of."""

from __future__ import annotations

from franca_fast.errors import renamed
from franca_fast.training.finetune import finetune
from franca_fast.training.loop import PretrainResult, pretrain

__all__ = ["PretrainResult", "finetune", "pretrain"]

__getattr__ = renamed(
    __name__,
    {
        "Config": "franca_fast.config.Config",
        "list_recipes": "franca_fast.config.list_recipes",
        "load_config": "franca_fast.config.load_config",
        "plan_training": "franca_fast.planning.plan_training",
        "to_yaml": "franca_fast.config.to_yaml",
    },
)
