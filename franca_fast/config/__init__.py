"""The configuration of a run: its keys, their limits, its files, and what it asks of the data."""

from __future__ import annotations

from franca_fast.config.files import list_recipes, load_config, to_yaml
from franca_fast.config.schema import Config

__all__ = ["Config", "list_recipes", "load_config", "to_yaml"]
