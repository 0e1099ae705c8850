"""Pretraining: configuration, the training loop and its checkpoints."""

from __future__ import annotations

from .config import Config
from .config_files import list_recipes, load_config, to_yaml
from .finetune import finetune
from .loop import PretrainResult, pretrain
from .plan import plan_training

__all__ = [
    "Config",
    "PretrainResult",
    "finetune",
    "list_recipes",
    "load_config",
    "plan_training",
    "pretrain",
    "to_yaml",
]
