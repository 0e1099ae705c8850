"""franca_fast: pretrain and use Franca-style self-supervised vision transformers.

Everything below is loaded when it is first used, so that `import franca_fast` costs little
more than `import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from franca_fast import (
        backends,
        config,
        data,
        evaluation,
        hub,
        losses,
        models,
        ops,
        planning,
        rasa,
        training,
    )
    from franca_fast.backends import backend_table, use_backend
    from franca_fast.cores import share_cores
    from franca_fast.evaluation import embed
    from franca_fast.hub import list_models, load_model
    from franca_fast.training import finetune, pretrain

__version__ = "0.2.0"

_FUNCTIONS = {
    "backend_table": "backends",
    "embed": "evaluation",
    "finetune": "training",
    "list_models": "hub",
    "load_model": "hub",
    "pretrain": "training",
    "share_cores": "cores",
    "use_backend": "backends",
}

__all__ = [
    "__version__",
    "backend_table",
    "backends",
    "config",
    "data",
    "embed",
    "evaluation",
    "finetune",
    "hub",
    "list_models",
    "load_model",
    "losses",
    "models",
    "ops",
    "planning",
    "pretrain",
    "rasa",
    "share_cores",
    "training",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
