"""Files of benchmark data sets, read as they lie on the disk; every error is one line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from franca_fast.data.dataset_strings import expanded, split_dataset_string
from franca_fast.data.decoding import MAX_IMAGE_PIXELS, BadImage, decode_rgb
from franca_fast.data.pixels.formats import extension_of
from franca_fast.errors import InputError
from franca_fast.paths import why_unreadable
from franca_fast.spelling import spell

_SHOWN = 3


def benchmark_source(
    source: str | os.PathLike[str], name: str, defaults: Mapping[str, str]
) -> tuple[Path, dict[str, str]]:
    """The folder and the options of a data set that a user names.

    Args:
        source: a folder, or `NAME:root=PATH` with any of the options.
        name: of the data set.
        defaults: its options besides `root`, with the values that a plain folder has.

    Raises:
        InputError: another data set, an unknown option, or a folder that cannot be read.

    Example:
        >>> benchmark_source("DAVIS:root=.:split=train", "DAVIS", {"split": "val"})
        (PosixPath('.'), {'split': 'train'})
    """
    text = os.fspath(source)
    named = split_dataset_string(text, {name: ("root", *defaults)})
    options = {**defaults, **({"root": text} if named is None else named[1])}
    folder = Path(expanded(options.pop("root")))
    why = why_unreadable(folder)
    if why:
        raise InputError(
            f"{name} '{spell(text)}': {why}; accepted: its folder, or {name}:root=PATH"
        )
    return folder, options


def benchmark_tree(folder: Path, name: str, needed: Sequence[str], below: Sequence[str]) -> Path:
    """The root of a data set's tree.

    Args:
        folder: that root, or a folder that holds it.
        name: of the data set, for errors.
        needed: folders and files that the tree has.
        below: names that the root may have in `folder`, such as its archive unpacks to.

    Raises:
        InputError: no such tree; says what is missing.

    Example:
        >>> (Path("DAVIS") / "JPEGImages").mkdir(parents=True)
        >>> benchmark_tree(Path("."), "DAVIS", ["JPEGImages"], ["DAVIS"]).as_posix()
        'DAVIS'
    """
    places = [folder, *(folder / one for one in below)]
    lacking: list[list[str]] = [
        [one for one in needed if not (place / one).exists()] for place in places
    ]
    for place, missing in zip(places, lacking, strict=True):
        if not missing:
            return place
    raise InputError(
        f"{name} '{spell(os.fspath(folder))}': without {', '.join(sorted(lacking, key=len)[0])}; "
        f"accepted: a folder with {', '.join(needed)}"
    )


def read_list(file: Path) -> list[str]:
    r"""The first word of each line of a list, in its order; empty lines are none.

    Raises:
        InputError: it cannot be read, or names nothing.

    Example:
        >>> _ = Path("val.txt").write_text("blackswan\n\nbmx-trees 1\n")
        >>> read_list(Path("val.txt"))
        ['blackswan', 'bmx-trees']
    """
    where = f"list '{spell(os.fspath(file))}'"
    why = why_unreadable(file)
    if why:
        raise InputError(f"{where}: {why}; accepted: a list of names")
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise InputError(f"{where}: empty; accepted: a name a line")
    return names


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by their names without suffix, sorted; hidden ones are none.

    Args:
        folder: its sub-folders are not looked into.
        suffixes: lower-case ones of the files that count, with their dots.

    Raises:
        InputError: the folder cannot be read, or two files have the same stem.

    Example:
        >>> Path("00000.jpg").touch()
        >>> files_by_stem(Path("."), [".jpg"])
        {'00000': PosixPath('00000.jpg')}
    """
    where = f"folder '{spell(os.fspath(folder))}'"
    why = why_unreadable(folder)
    if why or not folder.is_dir():
        raise InputError(f"{where}: {why or 'no folder'}; accepted: a folder of files")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or extension_of(file.name) not in suffixes:
            continue
        if file.stem in found:
            raise InputError(
                f"{where}: '{spell(file.name)}' beside '{spell(found[file.stem].name)}'; "
                "accepted: one file of a name"
            )
        found[file.stem] = file
    return found


def check_files(name: str, files: Iterable[Path]) -> None:
    """Refuses a data set of which files are missing.

    Args:
        name: of the data set.
        files: those that it should have.

    Raises:
        InputError: names some that are missing, and counts all.

    Example:
        >>> check_files("VOC", [Path("a.jpg")])
        Traceback (most recent call last):
        ...
        franca_fast.errors.InputError: VOC: 1 file is missing: 'a.jpg'; accepted: all that it lists
    """
    missing = [file for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(f"'{spell(os.fspath(file))}'" for file in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        number = f"{len(missing)} files are" if len(missing) > 1 else "1 file is"
        raise InputError(f"{name}: {number} missing: {shown}{more}; accepted: all that it lists")


def rgb_image(file: Path, decoding: Mapping[str, Any] | None = None) -> Image.Image:
    """An image of a benchmark; one that cannot be read ends the evaluation.

    Args:
        file: of any format that images are read in.
        decoding: `max_image_pixels` and `levels` where they differ from those of `decode_rgb`.

    Returns:
        an upright image of mode "RGB".

    Raises:
        InputError: it cannot be read or decoded.

    Example:
        >>> Image.new("L", (4, 3)).save("a.png")
        >>> rgb_image(Path("a.png")).size
        (4, 3)
    """
    given = dict(decoding or {})
    try:
        return decode_rgb(
            file.read_bytes(),
            given.get("max_image_pixels", MAX_IMAGE_PIXELS),
            given.get("levels", "full"),
        )
    except (BadImage, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"image '{spell(os.fspath(file))}': {why}; accepted: an image that can be read"
        ) from error


def file_stamp(file: Path) -> list[Any]:
    """What changes when a file does: its path, size and time of change.

    Example:
        >>> _ = Path("a.txt").write_text("four")
        >>> file_stamp(Path("a.txt"))[:2]
        ['a.txt', 4]
    """
    status = file.stat()
    return [os.fspath(file), status.st_size, status.st_mtime_ns]
