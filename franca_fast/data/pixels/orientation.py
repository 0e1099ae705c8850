"""How the camera was held, and turning images upright."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange width and height
_XMP = re.compile(rb'tiff:Orientation(?:\s*=\s*["\']|>)\s*([1-8])\s*["\'<]')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_EXIF_PREFIX = b"Exif\0\0"
_LARGEST_TEXT = 1 << 20  # bytes of a text of a PNG, decompressed


def orientation_of(image: Image.Image, data: bytes) -> int:
    """How the camera was held, 1..8 as in EXIF.

    EXIF decides, and where it says nothing, XMP. It is asked before the pixels are decoded, so a
    PNG's chunks are read here: Pillow knows of those behind the pixels only afterwards. Damaged
    EXIF says nothing, since it is no reason to refuse the pixels.

    Args:
        image: opened.
        data: the file, as far as it is known.

    Returns:
        1 also where it is unknown, or where the reader of the format turns images itself.
    """
    if image.format == "HEIF":  # turned by its reader
        return 1
    if image.format == "TIFF":
        return _orientation_of_tiff(image, data)
    if data.startswith(_PNG_SIGNATURE):
        exif, xmp = _metadata_of_png(data)
    else:
        # AVIF says in its container how it is to be turned, which Pillow passes on as EXIF; XMP
        # would say it again.
        exif = image.info.get("exif") or _hexadecimal(
            _bytes(image.info.get("Raw profile type exif"))
        )
        xmp = b"" if image.format == "AVIF" else _bytes(image.info.get("xmp"))
        xmp = xmp or _bytes(image.info.get("XML:com.adobe.xmp"))
    return _of_exif(exif) or _of_xmp(xmp) or 1


def _orientation_of_tiff(image: Image.Image, data: bytes) -> int:
    """What XMP alone says: what a tag says, Pillow heeds itself, and its size does, too."""
    if not data or _ORIENTATION in getattr(image, "tag_v2", {}):
        return 1
    return _of_xmp(_bytes(image.info.pop("xmp", b""))) or 1


def is_transposed(orientation: int) -> bool:
    """Whether an image changes its width for its height when it is turned upright."""
    return orientation >= 5


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image as it is to be seen."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _of_exif(block: bytes) -> int:
    """What an EXIF block says; 0 for nothing."""
    if not block:
        return 0
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(_ORIENTATION)
    except Exception:  # a damaged block fails in many ways
        return 0
    return value if isinstance(value, int) and 1 <= value <= 8 else 0


def _of_xmp(packet: bytes) -> int:
    match = _XMP.search(packet)
    return int(match[1]) if match else 0


def _bytes(text: object) -> bytes:
    if isinstance(text, str):
        return text.encode("utf-8", "replace")
    return text if isinstance(text, bytes) else b""


def _metadata_of_png(data: bytes) -> tuple[bytes, bytes]:
    """The EXIF block and the XMP packet of a PNG, wherever they stand in the file."""
    exif = profile = xmp = b""
    for kind, content in _chunks(data):
        if kind == b"eXIf":
            exif = exif or content
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, text = _text(kind, content)
            if keyword in _PROFILES:
                found = _hexadecimal(text)
                profile = profile or (found if _of_exif(found) else b"")
            elif keyword == _XMP_KEYWORD:
                xmp = xmp or text
    return exif if _of_exif(exif) else profile, xmp


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The ancillary chunks of a PNG, as far as it is whole."""
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if kind == b"IEND" or end + 4 > len(data):
            return
        if kind[0] & 0x20:
            yield kind, data[at + 8 : end]
        at = end + 4


def _text(kind: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Keyword and text; only those that matter here are decompressed."""
    keyword, _, text = content.partition(b"\0")
    if keyword not in (*_PROFILES, _XMP_KEYWORD):
        return b"", b""
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed, text = text[:1] == b"\1", b"".join(text[2:].split(b"\0", 2)[2:])
    elif compressed:
        text = text[1:]
    try:
        return keyword, zlib.decompressobj().decompress(text, _LARGEST_TEXT) if compressed else text
    except zlib.error:
        return keyword, b""


def _hexadecimal(profile: bytes) -> bytes:
    """The bytes of a profile of ImageMagick: an empty line, its kind, its length, digits."""
    lines = profile.split(b"\n", 3)
    try:
        return bytes.fromhex(b"".join(lines[3:]).decode("ascii"))
    except ValueError:
        return b""
