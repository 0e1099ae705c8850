"""Values of the protocols from the projects that published them; see python_tests/golden."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

_FOLDER = Path(__file__).parents[1] / "golden" / "evaluation"


@functools.cache
def arrays() -> dict[str, Tensor]:
    """Inputs and outputs, "protocol.name" -> array."""
    return load_file(_FOLDER / "golden.safetensors")


@functools.cache
def values() -> dict[str, Any]:
    """Figures and settings by protocol."""
    return json.loads((_FOLDER / "golden.json").read_text())
