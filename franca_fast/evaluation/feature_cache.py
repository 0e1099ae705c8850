"""Features kept on disk, under the name of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder, precision_of
from franca_fast.files import write_json

_VERSION = 1  # of what features of the same key are


def weights_checksum(encoder: Encoder) -> str | None:
    """SHA-256 of all parameters and buffers with their names; None where there are none to see.

    Example:
        >>> len(weights_checksum(nn.Linear(2, 2)))
        64
    """
    if not isinstance(encoder, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def encoder_facts(encoder: Encoder, precision: str) -> dict[str, Any]:
    """What the features of an image depend on besides the image.

    Args:
        encoder: a module.
        precision: see `encoders.precision_of`.

    Raises:
        InputError: an encoder whose weights nobody can see.

    Example:
        >>> sorted(encoder_facts(nn.Linear(2, 2), "fp32"))
        ['architecture', 'precision', 'weights']
    """
    weights = weights_checksum(encoder)
    if weights is None:
        raise InputError(
            "features_cache: with an encoder that is no torch.nn.Module, so that nothing tells its "
            "weights; accepted: a module, or no cache"
        )
    return {
        "weights": weights,
        "architecture": repr(getattr(encoder, "config", type(encoder).__name__)),
        "precision": precision_of(encoder, precision),
    }


class FeatureCache:
    """A folder of features.

    Args:
        folder: made when missing.

    Raises:
        InputError: it cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"features_cache: '{folder}' ({error.strerror}); accepted: a folder that can be "
                "written"
            ) from error

    def path(self, facts: Mapping[str, Any], suffix: str) -> Path:
        """The file of features that depend on these facts; the same facts give the same file."""
        text = json.dumps({"version": _VERSION, **facts}, sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"

    def keep(
        self, facts: Mapping[str, Any], shape: tuple[int, ...], blocks: Iterator[Tensor]
    ) -> Iterator[Tensor]:
        """Passes blocks of rows on, and keeps them; a row counts once it is on the disk.

        Args:
            facts: what the rows depend on.
            shape: of all rows, [n, ...].
            blocks: float32 [rows, ...] each, in order, after the first `done(facts)`.

        Yields:
            the blocks.

        Raises:
            OSError: the disk is full.
        """
        done = self.done(facts)
        file = self.path(facts, ".npy")
        array = np.lib.format.open_memmap(
            file, mode="r+" if done else "w+", dtype=np.float32, shape=tuple(shape)
        )
        for block in blocks:
            array[done : done + len(block)] = block.cpu().numpy()
            array.flush()
            done += len(block)
            write_json(self.path(facts, ".json"), {**facts, "rows": done})
            yield block

    def done(self, facts: Mapping[str, Any]) -> int:
        """How many rows are kept."""
        try:
            rows = int(json.loads(self.path(facts, ".json").read_text("utf-8"))["rows"])
            np.load(self.path(facts, ".npy"), mmap_mode="r")  # which fails where it was cut off
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return rows

    def kept(self, facts: Mapping[str, Any], n: int) -> Tensor:
        """The first n rows that are kept, float32 [n, ...], read when they are used."""
        array = np.load(self.path(facts, ".npy"), mmap_mode="c")
        return torch.from_numpy(array[:n])
