"""Implementations of the operators, and the registry that chooses between them."""

from __future__ import annotations

import sys
import types
from typing import NoReturn

from franca_fast.backends.contracts import OPERATORS
from franca_fast.backends.registry import BackendRow, backend_table, choose, use_backend
from franca_fast.errors import RenamedError

__all__ = ["OPERATORS", "BackendRow", "backend_table", "choose", "use_backend"]


class _Package(types.ModuleType):
    # A call of a module looks at its class alone.
    def __call__(self) -> NoReturn:
        raise RenamedError("franca_fast.backends(): since 0.2 it is franca_fast.backend_table()")


sys.modules[__name__].__class__ = _Package
