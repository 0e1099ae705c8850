"""What lies in a folder: images, shards, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from franca_fast.data.accounting import HIDDEN, Notes
from franca_fast.data.decoding import is_hidden_image, is_image_name
from franca_fast.data.tar_index import TAR_EXTENSIONS
from franca_fast.errors import InputError


@dataclass
class FolderContents:
    """What lies in a folder and below it.

    Attributes:
        images, shards: sorted relative paths.
        left_out: hidden images, and those in hidden folders.
        others: how many other files there are, by suffix.
    """

    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    left_out: Notes = field(default_factory=Notes)
    others: Counter[str] = field(default_factory=Counter)

    def others_in_words(self) -> str:
        """What lies there besides images and shards."""
        hidden = sum(noted.total for noted in self.left_out.values())
        kinds = [f"{n} {suffix or 'without a suffix'}" for suffix, n in self.others.most_common(5)]
        kinds += [f"{hidden} hidden images"] if hidden else []
        return "it holds " + ", ".join(kinds) if kinds else "it is empty"


def list_folder(folder: str) -> FolderContents:
    """Looks through a folder and all folders below it.

    Raises:
        InputError: a folder that cannot be read.
    """
    found = FolderContents()
    for path, hidden in _walk(folder, "", (), False):
        if hidden or is_hidden_image(path):
            if is_image_name(path) or is_hidden_image(path):
                found.left_out.add(HIDDEN, path)
        elif is_image_name(path):
            found.images.append(path)
        elif path.lower().endswith(TAR_EXTENSIONS) and not PurePath(path).name.startswith("."):
            found.shards.append(path)
        else:
            found.others[PurePath(path).suffix.lower()] += 1
    found.images.sort()
    found.shards.sort()
    return found


def _walk(
    root: str, below: str, above: tuple[tuple[int, int], ...], hidden: bool
) -> Iterator[tuple[str, bool]]:
    """Files below a folder, and whether they are in a hidden folder.

    Links to folders are followed, except to one that leads here.
    """
    folder = os.path.join(root, below) if below else root
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in above:
            return
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        raise InputError(
            f"source: '{folder}', {error.strerror}; accepted: readable folders"
        ) from None
    for name, is_folder in found:
        path = os.path.join(below, name)
        if is_folder:
            here = (*above, (status.st_dev, status.st_ino))
            yield from _walk(root, path, here, hidden or name[0] == ".")
        else:
            yield path, hidden


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, for one, is as good as a broken one
        return False
