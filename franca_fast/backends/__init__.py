"""Implementations of the operators, and the registry that chooses between them.

`franca_fast.backends` is this package and, called, the table of what each operator runs on:

    >>> import franca_fast
    >>> rows = franca_fast.backends()
    >>> sorted({row.operator for row in rows if row.backend == "torch"})[:2]
    ['clustering_cross_entropy', 'prototype_scores']
"""

from __future__ import annotations

import sys
import types

from franca_fast.backends.registry import OPERATORS, BackendRow, backend_table, choose, use_backend

__all__ = ["OPERATORS", "BackendRow", "backend_table", "choose", "use_backend"]


class _CallablePackage(types.ModuleType):
    # The public names give both `franca_fast.backends()` and this package the same name; making
    # the module callable lets either import order work.
    def __call__(self) -> list[BackendRow]:
        return backend_table()


sys.modules[__name__].__class__ = _CallablePackage
