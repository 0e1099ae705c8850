"""What a file is that was taken for weights and is none."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

SAFETENSORS = "a safetensors file, whose name ends in .safetensors"
TORCH = "a file of torch.save, whose name ends in .pth"
GZIP = "compressed by gzip"
_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file (git lfs pull fetches it)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": GZIP,
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a Python pickle, of which nothing was run",
    ),
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_SHOWN = 3


def kind_of_file(path: str | os.PathLike[str]) -> str | None:
    """Says what a file is, from its first bytes; None when they do not tell.

    Example:
        >>> _ = Path("page.pth").write_text("<!DOCTYPE html><title>404</title>")
        >>> kind_of_file("page.pth")
        'an HTML page, as a failed download leaves one'
    """
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(_PAGES):
        return "an HTML page, as a failed download leaves one"
    for magic, kind in _STARTS.items():
        if start.startswith(magic):
            return kind
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 100 << 20:
        return SAFETENSORS
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        is_torch = any(name.endswith("data.pkl") for name in names)
        return TORCH if is_torch else f"a zip archive of {_listed(iter(names))}"
    if start[257:262] == b"ustar":
        return f"a tar archive of {_listed(_tar_names(Path(path)))}"
    return None


def _tar_names(path: Path) -> Iterator[str]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield from (member.name for member in tar)
    except tarfile.TarError:
        return


def _listed(names: Iterator[str]) -> str:
    shown = list(islice(names, _SHOWN + 1))
    if not shown:
        return "nothing"
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
