r"""A second, plain reader of folders and tars: what becomes of each image there, by the rules.

It shares no code with the package: folders are read by `os`, tars by Python's `tarfile`, pixels by
Pillow. The rules are those of the manual and of WebDataset:

- An image is a file with an image's extension, in letters of any size.
- In a folder, hidden images and those in hidden folders are left out; links are followed.
- In a tar, neighbours whose paths agree up to the first dot of the file's name are one sample, of
  which one image is used: the first of a format that is read, of these the first with one dot,
  else the first. Members without an extension, hidden ones, folders and links belong to none.
- A label is what the first of `key.cls`, `key.json` says that says anything; that of
  `key.05.png` may also be in `key.05.cls` or `key.05.json`.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
NOT_READ = (".psd",)  # and known as images
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PIXELS = 64_000_000
Label = int | str | None
UNREAD = object()  # a label that is no label


@dataclass
class Plain:
    """One image that a rule lets through: its name, its bytes and its label."""

    name: str
    data: bytes | None  # None where the file cannot be read
    label: Label
    unread: bool = False

    @property
    def header(self) -> str:
        """What is wrong with its header; "" for nothing."""
        return _problem(self.data, pixels=False)

    @property
    def problem(self) -> str:
        """What is wrong with it as a whole; "" for nothing."""
        return _problem(self.data, pixels=True)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        assert self.data is not None
        return np.asarray(_open(self.data).convert("RGB"))


@dataclass
class Seen:
    """What the plain reader sees in a source; names of those left out by their rule."""

    images: list[Plain] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (rule, name)
    labels_alone: list[str] = field(default_factory=list)
    labels_repeated: int = 0
    damaged_shards: int = 0

    @property
    def found(self) -> int:
        return len(self.images) + len(self.left_out) + self.damaged_shards

    def skipped(self, *, pixels: bool = True, above: int = 1 << 30) -> Counter[str]:
        """Reason -> images; without `pixels` only the headers of those up to `above` are read."""
        problems = Counter[str]()
        for image in self.images:
            deep = pixels or (not image.header and max(size_of(image.data)) > above)
            problems[image.problem if deep else image.header] += 1
        del problems[""]
        return problems + Counter({"damaged shard": self.damaged_shards})

    def account(self, times: int = 1, **how: Any) -> dict[str, Any]:
        """What an account must be after so many epochs; how, see `skipped`."""
        skipped = self.skipped(**how)
        used = len(self.images) + self.damaged_shards - skipped.total()
        return {
            "found": times * self.found,
            "used": times * used,
            "skipped": {reason: times * count for reason, count in skipped.items()},
            "left_out": {rule: times * count for rule, count in self.left_out_by_rule().items()},
        }

    def remarks(self) -> Counter[str]:
        """Remarks on labels, of images only where they are used."""
        remarks = Counter({"label that is not understood": sum(i.unread for i in self.used())})
        remarks["label without an image beside it"] = len(self.labels_alone)
        remarks["label repeated in one sample"] = self.labels_repeated
        return +remarks

    def left_out_by_rule(self) -> Counter[str]:
        return Counter(rule for rule, _ in self.left_out)

    def used(self) -> list[Plain]:
        return [image for image in self.images if not image.problem]


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS + NOT_READ)


def size_of(data: bytes | None) -> tuple[int, int]:
    assert data is not None
    return _open(data).size


def _open(data: bytes) -> Image.Image:
    formats = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=formats)


def _problem(data: bytes | None, *, pixels: bool) -> str:
    if data is None:
        return "unreadable file"
    if not data:
        return "empty file"
    if data.startswith(b"8BPS"):
        return "format that is not read"
    try:
        image = _open(data)
        if image.width * image.height > MOST_PIXELS:
            return "too many pixels"
        if pixels:
            image.convert("RGB")
    except UnidentifiedImageError:
        # A TIFF may be of any kind; which ones are read, Pillow says.
        return "format that is not read" if data.startswith(TIFF) else "not an image"
    except Image.DecompressionBombError:
        return "too many pixels"
    except Exception:
        return "damaged image"
    return ""


def read_source(source: str | Path) -> Seen:
    """A folder of images, or one of tars."""
    files = sorted(_walk(str(source), "", ()))
    tars = [name for name in files if name.endswith((".tar", ".tar.gz", ".tgz"))]
    seen = Seen()
    for name in tars:
        if not name.rpartition("/")[2].startswith("."):
            _read_tar(os.path.join(source, name), seen)
    for name in [] if tars else files:
        if not is_image(name):
            continue
        parts = name.split("/")
        if any(part.startswith(".") for part in parts):
            seen.left_out.append(("hidden file", name))
            continue
        path = os.path.join(source, name)
        data = Path(path).read_bytes() if os.path.isfile(path) else None
        seen.images.append(Plain(name, data, parts[0] if len(parts) > 1 else None))
    return seen


def _walk(root: str, below: str, above: tuple[str, ...]) -> Iterator[str]:
    here = os.path.join(root, below)
    real = os.path.realpath(here)
    for entry in os.listdir(here) if real not in above else []:
        path = os.path.join(below, entry)
        if os.path.isdir(os.path.join(root, path)):
            yield from _walk(root, path, (*above, real))
        else:
            yield path


def _read_tar(path: str, seen: Seen) -> None:
    size = None if path.endswith("gz") else os.path.getsize(path)
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        group, key = list[tuple[str, str, bytes]](), None
        for info in _members(tar):
            folder, slash, base = info.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if size is not None and info.isreg() and info.offset_data + info.size > size:
                seen.damaged_shards += 1
            elif info.issym() or info.islnk() or info.isdev():
                if is_image(base):
                    seen.left_out.append(("link or device in a tar", info.name))
            elif not info.isreg() or not dot:
                continue
            elif not stem:
                if is_image(base):
                    seen.left_out.append(("hidden file", info.name))
            else:
                if folder + slash + stem != key:
                    _add_group(group, seen)
                    key, group = folder + slash + stem, []
                file = tar.extractfile(info)
                assert file is not None
                group.append((info.name, extension.lower(), file.read()))
        _add_group(group, seen)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    try:
        while (info := tar.next()) is not None:
            yield info
    except tarfile.ReadError:
        return  # it was cut; the last member has been given


def _add_group(group: list[tuple[str, str, bytes]], seen: Seen) -> None:
    for name, _, _ in group:
        if name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            seen.left_out.append(("tar in a tar", name))
    images = [member for member in group if is_image(member[0])]
    parts = [extension.rpartition(".")[0] for _, extension, _ in images]
    for name, extension, _ in group:
        part, _, kind = extension.rpartition(".")
        if kind == "cls" and part not in parts and (part or not images):
            seen.labels_alone.append(name)
    if not images:
        return
    ranks = [(name.lower().endswith(NOT_READ), "." in e) for name, e, _ in images]
    chosen = ranks.index(min(ranks))
    for i, (name, _, _) in enumerate(images):
        if i != chosen:
            before = name in [member[0] for member in images[:i]]
            rule = "repeated name in one sample" if before else "another image of the same sample"
            seen.left_out.append((rule, name))
    own = parts[chosen] + "." if parts[chosen] else ""
    kinds = dict.fromkeys(("cls", own + "cls", "json", own + "json"))
    said = [plain_label(data) for kind in kinds for _, e, data in group if e == kind]
    extensions = [extension for _, extension, _ in group]
    seen.labels_repeated += sum(max(0, extensions.count(kind) - 1) for kind in kinds)
    known = [label for label in said if label is not UNREAD and label is not None]
    unread = not known and UNREAD in said
    seen.images.append(Plain(images[chosen][0], images[chosen][2], next(iter(known), None), unread))


def plain_label(data: bytes) -> Label | object:
    """A class's number or name; None where nothing is said, UNREAD for what is neither."""
    text = data.decode("utf-8", "surrogateescape").strip(" \r\n\t\0")
    if text.startswith("{"):
        try:
            said = json.loads(text)
        except ValueError:
            return UNREAD
        text = str(next((said[key] for key in ("label", "cls", "class") if key in said), -1))
    if text == "-1":
        return None
    if text.isascii() and text.isdigit():
        return int(text) if int(text) < 2**31 else UNREAD
    is_name = 0 < len(text) < 256 and text.isprintable() | ("\udc80" <= max(text) <= "\udcff")
    return text if is_name and text[0] not in "[{" and not _is_number(text) else UNREAD


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
