"""Image files of more than 8 bits, and with metadata where one wants it, written byte by byte."""

from __future__ import annotations

import struct
import zlib

import numpy as np

Chunk = tuple[bytes, bytes]


def tiff_file(
    levels: np.ndarray,
    order: str = "<",
    *,
    compressed: bool = False,
    white_is_zero: bool = False,
    tags: dict[int, int | bytes] | None = None,
) -> bytes:
    """A TIFF of levels [H, W] or [H, W, 3 or 4] of any type, in one strip."""
    levels = np.asarray(levels)
    height, width, bands = (*levels.shape, 1)[:3]
    data = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compressed else data
    bits, kind = 8 * levels.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    photometric = 2 if bands > 1 else 0 if white_is_zero else 1
    entries: dict[int, tuple[str, list[int] | bytes]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * bands),
        259: ("H", [8 if compressed else 1]),
        262: ("H", [photometric]),
        273: ("I", [0]),
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        339: ("H", [kind] * bands),
    }
    if bands == 4:
        entries[338] = ("H", [2])
    for tag, value in (tags or {}).items():
        entries[tag] = ("B", value) if isinstance(value, bytes) else ("I", [value])
    start = 8 + 2 + 12 * len(entries) + 4
    sizes = {"B": 1, "H": 2, "I": 4}
    behind = sum(n for k, v in entries.values() if (n := len(v) * sizes[k]) > 4)
    entries[273] = ("I", [start + behind])
    table, extra = b"", b""
    for tag, (letter, values) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(values)}{letter}", *values)
        place = raw.ljust(4, b"\0")
        if len(raw) > 4:
            place, extra = struct.pack(f"{order}I", start + len(extra)), extra + raw
        code = {"B": 1, "H": 3, "I": 4}[letter]
        table += struct.pack(f"{order}HHI", tag, code, len(values)) + place
    signature = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return signature + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + extra + data


def png_file(
    levels: np.ndarray, *, before: tuple[Chunk, ...] = (), behind: tuple[Chunk, ...] = ()
) -> bytes:
    """A PNG of levels [H, W] or [H, W, 2, 3 or 4] of uint8 or uint16, with chunks around them."""
    height, width, bands = (*levels.shape, 1)[:3]
    rows = levels.astype(levels.dtype.newbyteorder(">")).reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    header = struct.pack(">IIBBBBB", width, height, 8 * levels.dtype.itemsize, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(lines)), *behind, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def pgm_file(levels: np.ndarray, most: int) -> bytes:
    """A PGM or PPM of 16-bit levels [H, W] or [H, W, 3] that are `most` at most."""
    kind = b"P6" if levels.ndim == 3 else b"P5"
    header = b"%s\n%d %d\n%d\n" % (kind, levels.shape[1], levels.shape[0], most)
    return header + levels.astype(">u2").tobytes()
