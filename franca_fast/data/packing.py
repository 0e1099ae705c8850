"""Packing images into WebDataset shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from franca_fast.data.accounting import BadSample, SkipCounter
from franca_fast.data.decoding import (
    MAX_IMAGE_PIXELS,
    BadImage,
    DecodeSettings,
    LazyImage,
    without_remarks,
)
from franca_fast.data.randomness import Purpose, permutation
from franca_fast.data.samples import OpenFiles, SampleRef, read_sample
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.shards import TarShard
from franca_fast.data.sources import open_source
from franca_fast.data.threads import in_threads
from franca_fast.errors import InputError
from franca_fast.files import atomic_path, write_json

PACKING_FILE, SIZES_FILE = "packing.json", "sizes.json"
_BLOCK = 512
_MOST_COMPRESSED = 4 << 30  # bytes of compressed shards, which stay in memory
_VERSION = 1
_LARGE_IMAGE_PIXELS = 1_000_000_000  # where large images are made smaller


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Attributes:
        pattern: names of the shards, with one number in it as `%06d`.
        max_size: bytes of a shard at most, counted before images are made smaller; an image that
            is larger gets a shard of its own.
        max_count: images of a shard at most.
        seed: of the shuffle; None keeps the order.
        max_side: images whose longer side is longer, in pixels, are made smaller and become JPEG
            files; None copies every file as it is.
        quality: of those JPEG files, 1 to 100.
        max_image_pixels: larger images are skipped; None is 64 million, and 1,000 million where
            `max_side` makes large images smaller.
        levels: how levels of more than 8 bits become 0 to 255 in those JPEG files: "full",
            "minmax" or "LOW:HIGH".

    Raises:
        InputError: a value outside its range.
    """

    pattern: str = "shard-%06d.tar"
    max_size: int = 1 << 30
    max_count: int = 10_000
    seed: int | None = 0
    max_side: int | None = None
    quality: int = 92
    max_image_pixels: int | None = None
    levels: str = "full"

    def __post_init__(self) -> None:
        if (
            not re.fullmatch(r"[^%/\\]*%\d{0,2}d[^%/\\]*\.tar", self.pattern)
            or self.pattern[0] == "."
        ):
            raise InputError(f"pattern: {self.pattern}; accepted: a name such as shard-%06d.tar")
        for name in ("max_size", "max_count", "max_side", "quality"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name}: {value!r}; accepted: a whole number from 1 on")
        if self.seed is not None and type(self.seed) is not int:
            raise InputError(
                f"seed: {self.seed!r}; accepted: a whole number, or None for no shuffle"
            )
        if self.quality > 100:
            raise InputError(f"quality: {self.quality}; accepted: from 1 to 100")
        _ = self.decoding

    @property
    def decoding(self) -> DecodeSettings:
        """Which images are skipped, and how levels are mapped."""
        most = self.max_image_pixels
        if most is None:
            most = MAX_IMAGE_PIXELS if self.max_side is None else _LARGE_IMAGE_PIXELS
        return DecodeSettings(most, self.levels)

    @property
    def description(self) -> dict[str, Any]:
        """The settings as `packing.json` holds them, and did before there were the last two."""
        newer = ("max_image_pixels", "levels")
        defaults = PackSettings.__dataclass_fields__
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in newer or value != defaults[name].default
        }


@dataclass
class PackedShards:
    """What was packed.

    Attributes:
        folder: where.
        shards: their names.
        images, size: images and bytes in all of them.
        kept: shards that were there already, finished by an earlier call.
        skipped: what could not be used, of the shards made by this call.
    """

    folder: Path
    shards: list[str]
    images: int = 0
    size: int = 0
    kept: int = 0
    skipped: SkipCounter = field(default_factory=SkipCounter)


def pack_shards(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    num_workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> PackedShards:
    """Packs images into WebDataset shards, in a random order that a seed decides.

    Each shard appears when it is complete. A call that was stopped, even by `kill -9`, is finished
    by the same call again: finished shards are kept, others are made anew. Of each image the
    shard holds the file, `key.cls` with its class where there is one, and the key is its path
    with dots replaced. Beside the shards lie `sizes.json`, their numbers of images, and
    `packing.json`, the settings and the names of the classes.

    Args:
        source: whatever `open_source` takes: a folder (its sub-folders are classes), files,
            or other shards.
        output: folder for the shards; made if missing.
        num_workers: threads; reading, resizing and writing run side by side.
        progress: called with the number of finished shards and of all, after each.
        **settings: fields of `PackSettings`.

    Raises:
        InputError: wrong settings, no images, or a folder that holds anything else.
        OSError: the folder cannot be written, for instance because the disk is full.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> packed = pack_shards("FashionMNIST:split=TEST", folder, max_count=400)
        >>> packed.shards, packed.images
        (['shard-000000.tar', 'shard-000001.tar', 'shard-000002.tar'], 1000)
    """
    unknown = settings.keys() - PackSettings.__dataclass_fields__.keys()
    if unknown:
        accepted = ", ".join(PackSettings.__dataclass_fields__)
        raise InputError(f"setting of packing: {min(unknown)}; accepted: {accepted}")
    chosen = PackSettings(**settings)
    folder = Path(output)
    _check_apart(source, folder)
    plan = _Plan(source, chosen)
    packed = PackedShards(folder, [chosen.pattern % i for i in range(len(plan))])
    with _claimed(folder, plan.description()), without_remarks():
        _remove_leftovers(packed)
        todo = list[int]()
        counts = dict[int, int]()
        for number, name in enumerate(packed.shards):
            if (folder / name).exists():
                counts[number] = len(TarShard(str(folder / name)).index())
                packed.kept += 1
            else:
                todo.append(number)
        stop = threading.Event()

        def pack(number: int) -> tuple[int, int, list[BadSample]]:
            return number, *_pack_one(folder / packed.shards[number], plan, number, stop)

        for bad in plan.damage:
            packed.skipped.add(bad)
        for number, count, bad_images in in_threads(pack, todo, num_workers, stop):
            counts[number] = count
            for bad in bad_images:
                packed.skipped.add(bad)
            if progress is not None:
                progress(len(counts), len(plan))
        packed.images = sum(counts.values())
        packed.size = sum((folder / name).stat().st_size for name in packed.shards)
        write_json(folder / SIZES_FILE, {packed.shards[i]: counts[i] for i in sorted(counts)})
    return packed


class _Plan:
    """Which image goes into which shard; a function of the source and the settings alone."""

    def __init__(self, source: Any, settings: PackSettings) -> None:
        opened = open_source(source, max_missing_fraction=1)
        self.settings = settings
        self.class_names = opened.class_names
        self._indexes = list[ShardIndex]()
        for shard in opened.shards:
            self._indexes.append(shard.index())
            if sum(sum(map(len, index.data or ())) for index in self._indexes) > _MOST_COMPRESSED:
                raise InputError(
                    f"source: '{opened.description}', compressed or from elsewhere; "
                    "accepted: plain shards and image files, or less of it"
                )
        self.damage = [index.damage for index in self._indexes if index.damage is not None]
        self._starts = np.cumsum([0, *(len(index) for index in self._indexes)])
        self._sizes = np.array([_size_of(ref) for ref in self._refs(range(self.images))], np.int64)
        order = np.arange(self.images)
        if settings.seed is not None:
            order = permutation(settings.seed, Purpose.PACKING, (), self.images)
        self._shards = list(_cut(order, self._sizes, settings))

    @property
    def images(self) -> int:
        return int(self._starts[-1])

    def __len__(self) -> int:
        return len(self._shards)

    def samples(self, shard: int) -> Iterator[tuple[SampleRef, int | None]]:
        """The samples of a shard and their classes."""
        for i in self._shards[shard].tolist():
            index, inside = self._find(i)
            yield index.ref(inside), index.label(inside)

    def description(self) -> dict[str, Any]:
        """All that decides what is packed."""
        contents = hashlib.sha256(self._sizes.tobytes())
        for ref in self._refs(range(self.images)):
            contents.update(ref.name.encode("utf-8", "surrogateescape") + b"\0")
        return {
            "version": _VERSION,
            "settings": self.settings.description,
            "images": self.images,
            "contents": contents.hexdigest(),
            "classes": self.class_names,
        }

    def _refs(self, numbers: Iterable[int]) -> Iterator[SampleRef]:
        for i in numbers:
            index, inside = self._find(i)
            yield index.ref(inside)

    def _find(self, number: int) -> tuple[ShardIndex, int]:
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._indexes[shard], number - int(self._starts[shard])


def _size_of(ref: SampleRef) -> int:
    if ref.size >= 0:
        return ref.size
    try:
        return os.stat(ref.path).st_size
    except OSError:
        return 0  # it will be skipped, and counted, when it is to be read


def _cut(order: np.ndarray, sizes: np.ndarray, settings: PackSettings) -> Iterator[np.ndarray]:
    """Cuts an order into shards that keep to the limits."""
    start = total = 0
    for i, size in enumerate(sizes[order].tolist()):
        member = 3 * _BLOCK + size + -size % _BLOCK  # with its class in another member
        if i > start and (total + member > settings.max_size or i - start >= settings.max_count):
            yield order[start:i]
            start, total = i, 0
        total += member
    yield order[start:]


def _pack_one(
    path: Path, plan: _Plan, number: int, stop: threading.Event
) -> tuple[int, list[BadSample]]:
    """Writes one shard; returns its number of images, and what was skipped."""
    bad, keys = list[BadSample](), set[str]()
    files = OpenFiles()
    try:
        with (
            atomic_path(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for ref, label in plan.samples(number):
                if stop.is_set():
                    raise InterruptedError("packing was stopped")
                try:
                    data, extension = _prepared(read_sample(ref, files), ref.name, plan.settings)
                except BadImage as error:
                    bad.append(BadSample(ref.location, error.reason, error.detail))
                    continue
                key = _key(ref.name, keys)
                _add(tar, f"{key}.{extension}", data)
                if label is not None:
                    _add(tar, f"{key}.cls", str(label).encode())
    finally:
        files.close()
    return len(keys), bad


def _prepared(data: bytes, name: str, settings: PackSettings) -> tuple[bytes, str]:
    """The bytes to write for an image, and their extension.

    Raises:
        BadImage: it cannot be used.
    """
    lazy = LazyImage(data, settings.decoding)
    longest, most = max(lazy.size), settings.max_side
    if most is None or longest <= most:
        extension = posixpath.splitext(name)[1][1:].lower()
        return data, "jpg" if extension in ("jpeg", "jpe") else extension
    size = [max(1, round(side * most / longest)) for side in lazy.size]
    image = lazy.load((2 * size[0], 2 * size[1]))
    image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=settings.quality)
    return file.getvalue(), "jpg"


def _key(name: str, taken: set[str]) -> str:
    """A member's key for an image's path: without dots, and other than those taken."""
    stem = posixpath.splitext(name.replace("\\", "/"))[0]
    parts = [part.replace(".", "_") for part in stem.split("/") if part not in ("", ".", "..")]
    key = base = "/".join(parts) or "image"
    number = 1
    while key in taken:
        number += 1
        key = f"{base}_{number}"
    taken.add(key)
    return key


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner and no time: the same images give the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _check_apart(source: Any, output: Path) -> None:
    """Refuses to write into a folder that is read."""
    given = [source] if isinstance(source, (str, os.PathLike)) else source
    for one in map(os.path.realpath, given):
        if os.path.isdir(one) and output.resolve().is_relative_to(one):
            raise InputError(
                f"output: '{output}' lies in the folder that is packed; accepted: not in '{one}'"
            )


@contextmanager
def _claimed(folder: Path, description: dict[str, Any]) -> Iterator[None]:
    """Makes the output folder this packing's, for one process at a time.

    Raises:
        InputError: it holds something else, or another process is at work there.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output: '{folder}' is a file; accepted: a folder")
    folder.mkdir(parents=True, exist_ok=True)
    file, lock = folder / PACKING_FILE, os.open(folder, os.O_RDONLY)
    try:
        _lock(lock, folder)
        if file.exists():
            if _read_json(file) != description:
                raise InputError(
                    f"output: '{folder}' holds shards of other images or settings (see "
                    f"{PACKING_FILE} there); accepted: the same, or a new folder"
                )
        elif any(folder.iterdir()):
            raise InputError(f"output: '{folder}' is in use; accepted: a new or empty folder")
        else:
            write_json(file, description)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"output: another process is packing into '{folder}'; accepted: another folder"
        ) from None
    except OSError:
        pass  # a file system without locks


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        return None


def _remove_leftovers(packed: PackedShards) -> None:
    """Removes what a killed process left unfinished (see `atomic_path` for the names)."""
    beginnings = {f".{Path(name).stem[:40]}-" for name in packed.shards}
    for path in packed.folder.glob(".*.tar"):
        if path.name.rpartition("-")[0] + "-" in beginnings:
            with suppress(OSError):
                path.unlink()
