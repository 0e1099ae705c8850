"""Packing images into WebDataset shards."""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from franca_fast.data.accounting import Accounted, BadSample
from franca_fast.data.decoding import (
    BadImage,
    LazyImage,
    held_in_memory,
    without_remarks,
)
from franca_fast.data.pack_plan import PackPlan
from franca_fast.data.pack_settings import PackSettings
from franca_fast.data.samples import OpenFiles, read_sample
from franca_fast.data.shards import PACKING_FILE, TarShard
from franca_fast.data.tar_index import CLASSES_KEY
from franca_fast.data.threads import in_threads
from franca_fast.errors import InputError
from franca_fast.files import atomic_path, check_folder, temporary_prefix, write_json
from franca_fast.spelling import spell

SIZES_FILE = "sizes.json"
_JPEG = ("jpeg", "jpe", "jfif", "jif", "pjpeg", "pjp")  # other names of .jpg
_SKIPPED_BEFORE = "skipped by an earlier call"


@dataclass
class PackedShards(Accounted):
    """What was packed.

    Attributes:
        folder: where.
        shards: their names.
        size: bytes in all of them.
        kept: shards that were there already, finished by an earlier call.
        class_names: of the classes 0, 1, ...; empty when labels are numbers without names.

    In the account what earlier calls packed counts as used, and what they skipped has a reason of
    its own.
    """

    folder: Path
    shards: list[str]
    size: int = 0
    kept: int = 0
    class_names: list[str] = field(default_factory=list)


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
    shard holds the file, `key.cls` with the number of its class where there is one, and the key is
    its path with dots replaced. The names of the classes lie in each shard and, with the settings,
    in `packing.json` beside them, where `sizes.json` has the numbers of images. When not one image
    can be used, nothing is left.

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
    folder = check_folder(output, overwrite=True)
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    _check_apart(source, folder)
    plan = PackPlan(source, chosen)
    names = [chosen.pattern % i for i in range(len(plan))]
    packed = PackedShards(folder, names, account=plan.account, class_names=plan.class_names)
    with _claimed(folder, plan.description()), without_remarks():
        _remove_leftovers(packed)
        todo = list[int]()
        counts = dict[int, int]()
        for number, name in enumerate(packed.shards):
            if (folder / name).exists():
                counts[number] = len(TarShard(str(folder / name)).index())
                packed.kept += 1
                if lost := plan.length(number) - counts[number]:
                    before = BadSample(str(folder / name), _SKIPPED_BEFORE, count=lost, of=lost)
                    packed.account.skip(before)
            else:
                todo.append(number)
        stop = threading.Event()

        def pack(number: int) -> tuple[int, int, list[BadSample], list[BadSample]]:
            return number, *_pack_one(folder / packed.shards[number], plan, number, stop)

        for number, count, bad, remarks in in_threads(pack, todo, num_workers, stop):
            counts[number] = count
            packed.account.add(bad, remarks)
            if progress is not None:
                progress(len(counts), len(plan))
        packed.account.used = sum(counts.values())
        packed.size = sum((folder / name).stat().st_size for name in packed.shards)
        write_json(folder / SIZES_FILE, {packed.shards[i]: counts[i] for i in sorted(counts)})
        if not packed.images:
            _remove_all(packed, made)
    return packed


def _pack_one(
    path: Path, plan: PackPlan, number: int, stop: threading.Event
) -> tuple[int, list[BadSample], list[BadSample]]:
    """Writes one shard; returns its number of images, and what was skipped."""
    bad, remarks, keys = list[BadSample](), list[BadSample](), set[str]()
    files = OpenFiles()
    try:
        with (
            atomic_path(path) as temporary,
            _open_tar(temporary) as tar,
        ):
            for ref, label in plan.samples(number):
                if stop.is_set():
                    raise InterruptedError("packing was stopped")
                try:
                    with held_in_memory():
                        data, extension, lazy = _prepared(
                            read_sample(ref, files), ref.name, plan.settings
                        )
                except BadImage as error:
                    bad.append(BadSample(ref.location, error.reason, error.detail))
                    continue
                remarks += lazy.remarks(ref.location)
                if not keys:  # no program opens a tar of nothing but a global header
                    _add_classes(tar, plan.class_names)
                key = _key(ref.name, keys)
                _add(tar, f"{key}.{extension}", data)
                if label >= 0:
                    _add(tar, f"{key}.cls", str(label).encode())
    finally:
        files.close()
    return len(keys), bad, remarks


def _prepared(data: bytes, name: str, settings: PackSettings) -> tuple[bytes, str, LazyImage]:
    """The bytes to write for an image, their extension, and the image.

    Raises:
        BadImage: it cannot be used.
    """
    lazy = LazyImage(data, settings.decoding, name)
    longest, most = max(lazy.size), settings.max_side
    if most is None or longest <= most:
        extension = posixpath.splitext(name)[1][1:].lower()
        return data, "jpg" if extension in _JPEG else extension, lazy
    size = [max(1, round(side * most / longest)) for side in lazy.size]
    image = lazy.load((2 * size[0], 2 * size[1]))
    image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=settings.quality)
    return file.getvalue(), "jpg", lazy


def _key(name: str, taken: set[str]) -> str:
    """A member's key for an image's path: without dots, and other than those taken."""
    stem = posixpath.splitext(name)[0]
    parts = [part.replace(".", "_") for part in stem.split("/") if part not in ("", ".", "..")]
    key = base = "/".join(parts) or "image"
    number = 1
    while key in taken:
        number += 1
        key = f"{base}_{number}"
    taken.add(key)
    return key


def _open_tar(path: Path) -> tarfile.TarFile:
    return tarfile.open(
        path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    )


def _add_classes(tar: tarfile.TarFile, class_names: list[str]) -> None:
    """Adds the names of the classes, where they have any, in front of the images.

    They are a record of a global pax header, which other readers pass over.
    """
    if class_names:
        names = json.dumps([spell(name) for name in class_names])
        header = tarfile.TarInfo.create_pax_global_header({CLASSES_KEY: names})
        assert tar.fileobj is not None
        tar.fileobj.write(header)
        tar.offset += len(header)


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


def _remove_all(packed: PackedShards, made: list[Path]) -> None:
    """Leaves nothing of a packing in which there is no image, the folders made for it included."""
    for name in (*packed.shards, SIZES_FILE, PACKING_FILE):
        (packed.folder / name).unlink(missing_ok=True)
    packed.shards, packed.size = [], 0
    with suppress(OSError):  # it holds something else
        for folder in made:
            folder.rmdir()


def _remove_leftovers(packed: PackedShards) -> None:
    """Removes what a killed process left unfinished (see `atomic_path` for the names)."""
    beginnings = {temporary_prefix(Path(name)) for name in packed.shards}
    for path in packed.folder.glob(".*.tar"):
        if path.name.rpartition("-")[0] + "-" in beginnings:
            with suppress(OSError):
                path.unlink()
