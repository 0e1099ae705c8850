"""Features with the names of their images, and the files they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_file, save_safetensors


@dataclass
class Embeddings:
    """Features of a set of images, in a fixed order.

    Attributes:
        names: n file names, as the source spells them.
        features: float32 [n, d].
        labels: int64 [n], -1 where a label is unknown; None when no image has one.
        skipped: reason -> number of images left out for it (not kept in files).

    Raises:
        InputError: the lengths differ or the features are not [n, d].

    Example:
        >>> e = Embeddings(["a.png"], torch.ones(1, 4), torch.tensor([0]))
        >>> e.save("/tmp/e.npz", overwrite=True)
        >>> Embeddings.load("/tmp/e.npz").names
        ['a.png']
    """

    names: list[str]
    features: Tensor
    labels: Tensor | None = None
    skipped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.names)
        if self.features.dim() != 2 or self.features.shape[0] != n:
            raise InputError(f"features: {tuple(self.features.shape)}; accepted: [{n}, d]")
        if self.labels is not None and self.labels.shape != (n,):
            raise InputError(f"labels: {tuple(self.labels.shape)}; accepted: [{n}]")

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes everything but `skipped` to `.npz`, `.parquet` or `.safetensors`, atomically.

        Raises:
            InputError: see `check_output`.
            OSError: the file cannot be written.
        """
        file = check_output(path, overwrite=overwrite)
        with atomic_path(file) as temporary:
            _FORMATS[file.suffix][0](self, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Reads what `save` wrote.

        Raises:
            InputError: no such file, another format, or damaged.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"embeddings '{file}': no such file")
        _check_suffix(file)
        try:
            return _FORMATS[file.suffix][1](file)
        except InputError:
            raise
        except Exception as error:  # each of the three readers has errors of its own
            raise InputError(f"embeddings '{file}': damaged, or no embeddings ({error})") from error


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuses a file that could not be written, before the work that fills it.

    Returns:
        the path.

    Raises:
        InputError: unknown suffix, the file exists, or pyarrow is absent for `.parquet`.
    """
    _check_suffix(Path(path))
    return check_file(path, overwrite=overwrite)


def _check_suffix(file: Path) -> None:
    if file.suffix not in _FORMATS:
        raise InputError(f"embeddings: '{file}'; accepted: a suffix of {', '.join(_FORMATS)}")
    if file.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"embeddings '{file}': .parquet needs pyarrow (pip install pyarrow); "
                ".npz and .safetensors need nothing more"
            ) from error


def _write_npz(embeddings: Embeddings, file: Path) -> None:
    arrays = {"names": np.array(embeddings.names, dtype=np.str_)}
    arrays["features"] = embeddings.features.numpy()
    if embeddings.labels is not None:
        arrays["labels"] = embeddings.labels.numpy()
    with file.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _read_npz(file: Path) -> Embeddings:
    with np.load(file, allow_pickle=False) as arrays:
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        return Embeddings(arrays["names"].tolist(), torch.from_numpy(arrays["features"]), labels)


def _write_safetensors(embeddings: Embeddings, file: Path) -> None:
    # The names go into a tensor, since the header that holds metadata is limited in size.
    names = json.dumps(embeddings.names, ensure_ascii=False).encode()
    tensors = {"features": embeddings.features.contiguous()}
    tensors["names_json"] = torch.frombuffer(bytearray(names), dtype=torch.uint8)
    if embeddings.labels is not None:
        tensors["labels"] = embeddings.labels.contiguous()
    save_safetensors(tensors, file)


def _read_safetensors(file: Path) -> Embeddings:
    from safetensors.torch import load_file

    tensors = load_file(file)
    names = json.loads(tensors["names_json"].numpy().tobytes())
    return Embeddings(names, tensors["features"], tensors.get("labels"))


def _write_parquet(embeddings: Embeddings, file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.array(embeddings.features.numpy().reshape(-1))
    width = embeddings.features.shape[1]
    columns = {
        "name": pyarrow.array(embeddings.names, pyarrow.string()),
        "features": pyarrow.FixedSizeListArray.from_arrays(values, width),
    }
    if embeddings.labels is not None:
        columns["label"] = pyarrow.array(embeddings.labels.numpy())
    parquet.write_table(pyarrow.table(columns), file)


def _read_parquet(file: Path) -> Embeddings:
    from pyarrow import parquet

    table = parquet.read_table(file)
    features = table.column("features").combine_chunks()
    values = features.flatten().to_numpy().reshape(len(features), features.type.list_size)
    labels = None
    if "label" in table.column_names:
        labels = torch.from_numpy(table.column("label").to_numpy().copy())
    names = table.column("name").to_pylist()
    return Embeddings(names, torch.from_numpy(values.copy()), labels)


_Writer = Callable[[Embeddings, Path], None]
_Reader = Callable[[Path], Embeddings]
_FORMATS: dict[str, tuple[_Writer, _Reader]] = {
    ".npz": (_write_npz, _read_npz),
    ".parquet": (_write_parquet, _read_parquet),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
