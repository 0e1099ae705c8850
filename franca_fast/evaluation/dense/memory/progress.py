"""What a long search has found so far, on the disk, so that an interrupted one goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from franca_fast.evaluation.feature_cache import FeatureCache
from franca_fast.files import atomic_path, save_safetensors, temporary_prefix

SECONDS_BETWEEN_SAVES = 300.0


class SearchProgress:
    """A file of tensors under the name of everything that they depend on.

    Args:
        folder: the folder of features; None keeps nothing.
        facts: what the search depends on. Weights that nobody can see (None) keep nothing, since
            those of another encoder would be taken for them.

    Example:
        >>> import torch
        >>> progress = SearchProgress("/tmp/features", {"weights": "ab", "k": 30})
        >>> progress.save({"done": torch.tensor(3)})
        >>> SearchProgress("/tmp/features", {"weights": "ab", "k": 30}).load()
        {'done': tensor(3)}
        >>> progress.clear()
    """

    def __init__(self, folder: str | os.PathLike[str] | None, facts: Mapping[str, Any]) -> None:
        self._file: Path | None = None
        if folder is not None and facts.get("weights") is not None:
            cache = FeatureCache(Path(folder) / "progress")
            self._file = cache.path({"kind": "search", **facts}, ".safetensors")
        self._saved = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What was saved last; None where nothing was, or a damaged disk lost it."""
        if self._file is None:
            return None
        for unfinished in self._file.parent.glob(f"{temporary_prefix(self._file)}*"):
            unfinished.unlink(missing_ok=True)  # of a process that was killed as it saved
        if not self._file.is_file():
            return None
        try:
            return load_file(self._file)
        except (SafetensorError, OSError):
            return None

    def save_when_due(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Saves, if the last time is long enough ago.

        Raises:
            OSError: the file cannot be written.
        """
        if self._file is not None and time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES:
            self.save(state())

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replaces what was saved, atomically.

        Raises:
            OSError: the file cannot be written.
        """
        if self._file is not None:
            # Another process with the same search may take the temporary for a killed one's.
            with suppress(FileNotFoundError), atomic_path(self._file) as temporary:
                tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
                save_safetensors(tensors, temporary)
            self._saved = time.monotonic()

    def clear(self) -> None:
        """Forgets what was saved; for the end."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
