"""Features with the names of their images, and the files they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from franca_fast.data.accounting import ImageAccount
from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_file, save_safetensors
from franca_fast.paths import utf8_path
from franca_fast.spelling import spell, unspell

_DESCRIPTION = "franca_fast"  # under this name files hold, as JSON, what is no array


@dataclass
class Embeddings:
    """Features of a set of images, in a fixed order.

    Attributes:
        names: n file names, as the source spells them.
        features: float32 [n, d].
        labels: int64 [n], -1 where a label is unknown; None when no image has one.
        skipped: reason -> number of images that could not be used.
        class_names: of the labels 0, 1, ...; empty where labels are numbers without names.
        facts: what else is known of how they were made; plain values, as JSON has them. Those of
            `embed` say what became of the images of the source, and the settings.

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
    class_names: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.names)
        if self.features.dim() != 2 or self.features.shape[0] != n:
            raise InputError(f"features: {tuple(self.features.shape)}; accepted: [{n}, d]")
        if self.labels is not None and self.labels.shape != (n,):
            raise InputError(f"labels: {tuple(self.labels.shape)}; accepted: [{n}]")
        highest = -1 if self.labels is None or not n else int(self.labels.max())
        if self.class_names and highest >= len(self.class_names):
            raise InputError(
                f"labels: {highest}; accepted: below {len(self.class_names)}, the class_names"
            )

    @property
    def account(self) -> ImageAccount:
        """What became of the images of the source, as far as it is known."""
        known = {"found": len(self), "used": len(self), "skipped": self.skipped}
        return ImageAccount.from_dict(self.facts.get("images", known))

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes everything to `.npz`, `.parquet` or `.safetensors`, atomically.

        Names that are not UTF-8 are spelled so that they come back (see `franca_fast.spelling`).

        Raises:
            InputError: see `check_output`.
            OSError: the file cannot be written.
        """
        file = check_output(path, overwrite=overwrite)
        with atomic_path(file) as temporary:
            _FORMATS[file.suffix][0](self, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Reads what `save` wrote, also in earlier versions.

        Those kept no `class_names`. They are known where the labels are those of class folders,
        which the names of the images begin with.

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


def _described(embeddings: Embeddings) -> dict[str, Any]:
    """All but arrays and the names of images, as JSON has it."""
    return {
        "class_names": [spell(name) for name in embeddings.class_names],
        "skipped": embeddings.skipped,
        "facts": embeddings.facts,
    }


def _restored(
    names: list[str], features: Tensor, labels: Tensor | None, described: bytes | str | None
) -> Embeddings:
    """Puts together what a file holds; files of earlier versions have no description."""
    if described is None:
        return Embeddings(names, features, labels, class_names=_folder_classes(names, labels))
    more = json.loads(described)
    return Embeddings(
        [unspell(name) for name in names],
        features,
        labels,
        dict(more["skipped"]),
        [unspell(name) for name in more["class_names"]],
        dict(more["facts"]),
    )


def _folder_classes(names: list[str], labels: Tensor | None) -> list[str]:
    """The class folders that earlier versions numbered in the order of text, if it was these.

    Such numbers are places in a list of the set's own, so that they fit no other set's.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = sorted(set(folders))
    numbers = {folder: number for number, folder in enumerate(classes)}
    if labels is None or len(classes) < 2 or "" in numbers:
        return []
    return classes if labels.tolist() == [numbers[folder] for folder in folders] else []


def _write_npz(embeddings: Embeddings, file: Path) -> None:
    arrays = {"names": np.array([spell(name) for name in embeddings.names], dtype=np.str_)}
    arrays["features"] = embeddings.features.numpy()
    if embeddings.labels is not None:
        arrays["labels"] = embeddings.labels.numpy()
    if embeddings.class_names:  # also plainly, for other programs
        names = [spell(name) for name in embeddings.class_names]
        arrays["class_names"] = np.array(names, dtype=np.str_)
    arrays[_DESCRIPTION] = np.array(json.dumps(_described(embeddings)))
    with file.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _read_npz(file: Path) -> Embeddings:
    with np.load(file, allow_pickle=False) as arrays:
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        described = str(arrays[_DESCRIPTION]) if _DESCRIPTION in arrays else None
        features = torch.from_numpy(arrays["features"])
        return _restored(arrays["names"].tolist(), features, labels, described)


def _write_safetensors(embeddings: Embeddings, file: Path) -> None:
    # The names go into a tensor, since the header that holds metadata is limited in size.
    tensors = {
        "features": embeddings.features.contiguous(),
        "names_json": _json_tensor([spell(name) for name in embeddings.names]),
        _DESCRIPTION: _json_tensor(_described(embeddings)),
    }
    if embeddings.labels is not None:
        tensors["labels"] = embeddings.labels.contiguous()
    save_safetensors(tensors, file)


def _json_tensor(value: Any) -> Tensor:
    text = json.dumps(value, ensure_ascii=False).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _read_safetensors(file: Path) -> Embeddings:
    from safetensors.torch import load_file

    with utf8_path(file) as readable:
        tensors = load_file(readable)
    names = json.loads(tensors["names_json"].numpy().tobytes())
    described = tensors[_DESCRIPTION].numpy().tobytes() if _DESCRIPTION in tensors else None
    return _restored(names, tensors["features"], tensors.get("labels"), described)


def _write_parquet(embeddings: Embeddings, file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.array(embeddings.features.numpy().reshape(-1))
    width = embeddings.features.shape[1]
    names = [spell(name) for name in embeddings.names]
    columns = {
        "name": pyarrow.array(names, pyarrow.string()),
        "features": pyarrow.FixedSizeListArray.from_arrays(values, width),
    }
    described = _described(embeddings)
    if embeddings.labels is not None:
        columns["label"] = pyarrow.array(embeddings.labels.numpy())
        if embeddings.class_names:  # also plainly, for other programs
            known = [*described["class_names"], None]  # -1 is the last
            classes = [known[label] for label in embeddings.labels.tolist()]
            columns["class"] = pyarrow.array(classes, pyarrow.string())
    table = pyarrow.table(columns)
    table = table.replace_schema_metadata({_DESCRIPTION: json.dumps(described)})
    with file.open("wb") as stream:  # pyarrow takes no names but UTF-8
        parquet.write_table(table, stream)


def _read_parquet(file: Path) -> Embeddings:
    from pyarrow import parquet

    with file.open("rb") as stream:
        table = parquet.read_table(stream)
    features = table.column("features").combine_chunks()
    values = features.flatten().to_numpy().reshape(len(features), features.type.list_size)
    labels = None
    if "label" in table.column_names:
        labels = torch.from_numpy(table.column("label").to_numpy().copy())
    names = table.column("name").to_pylist()
    described = (table.schema.metadata or {}).get(_DESCRIPTION.encode())
    return _restored(names, torch.from_numpy(values.copy()), labels, described)


_Writer = Callable[[Embeddings, Path], None]
_Reader = Callable[[Path], Embeddings]
_FORMATS: dict[str, tuple[_Writer, _Reader]] = {
    ".npz": (_write_npz, _read_npz),
    ".parquet": (_write_parquet, _read_parquet),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
