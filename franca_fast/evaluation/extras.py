"""Libraries that only some evaluations need."""

from __future__ import annotations

import importlib
from types import ModuleType

from franca_fast.errors import InputError

_PACKAGES = {"sklearn": "scikit-learn", "scipy": "scipy", "faiss": "faiss-cpu"}


def need(module: str, whose: str) -> ModuleType:
    """Imports a library of the extra `eval`.

    Args:
        module: as it is imported, for instance "sklearn.linear_model".
        whose: what needs it, for the error.

    Raises:
        InputError: it is not installed; says how to install it.

    Example:
        >>> need("scipy.optimize", "the matching of clusters").__name__
        'scipy.optimize'
    """
    package = _PACKAGES[module.partition(".")[0]]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{whose} needs {package}, which is not installed; "
            "pip install 'franca-fast[eval]' brings it"
        ) from error
