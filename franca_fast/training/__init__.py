"""Pretraining: configuration, the training loop and its checkpoints."""

from __future__ import annotations

from franca_fast.config.files import list_recipes, load_config, to_yaml
from franca_fast.config.schema import Config
from franca_fast.training.finetune import finetune
from franca_fast.training.loop import PretrainResult, pretrain

__all__ = [
    "Config",
    "PretrainResult",
    "finetune",
    "list_recipes",
    "load_config",
    "pretrain",
    "to_yaml",
]
