"""Formats of images: their names, and which of them are read.

Read are those whose decoders are part of Pillow and are kept up; EPS, for one, would start another
program. HEIC is read where pillow-heif is installed. What has the name of another format of
photographs and scans is known as an image, so that it is counted as one that cannot be used.
"""

from __future__ import annotations

import io
import posixpath
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

from PIL import Image, TiffImagePlugin

_PILLOW_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "AVIF": (".avif", ".avifs"),
    "ICO": (".ico",),
    "DIB": (".dib",),
    "TGA": (".tga",),
}
_HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
_RAW_EXTENSIONS = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".raf"),
    *(".rw2", ".pef", ".srw", ".3fr", ".fff", ".iiq", ".mrw", ".x3f", ".kdc", ".dcr", ".erf"),
)
_HEIF = "HEIC is read where pillow-heif is installed: pip install pillow-heif"
_AVIF = "AVIF is read where Pillow was built with it"
_RAW = "camera raw; develop it to TIFF, PNG or JPEG first, for instance with rawpy or darktable"
_CONVERT = "convert it to PNG, TIFF or JPEG first"
_UNREAD = {
    **dict.fromkeys(_HEIF_EXTENSIONS, _HEIF),
    **dict.fromkeys(_RAW_EXTENSIONS, _RAW),
    **{
        extension: f"{name}; {_CONVERT}"
        for extensions, name in (
            ((".jxl",), "JPEG XL"),
            ((".psd", ".psb"), "Photoshop"),
            ((".exr",), "OpenEXR"),
            ((".hdr",), "Radiance HDR"),
            ((".dcm", ".dicom"), "DICOM"),
            ((".dds",), "DirectDraw surface"),
            ((".qoi",), "QOI"),
            ((".pcx",), "PCX"),
        )
        for extension in extensions
    },
}
# (place, bytes there, extension of what it is)
_SIGNATURES = (
    (0, b"\xff\x0a", ".jxl"),
    (4, b"JXL \r\n\x87\n", ".jxl"),
    (0, b"8BPS", ".psd"),
    (0, b"v/1\x01", ".exr"),
    (0, b"#?RADIANCE", ".hdr"),
    (128, b"DICM", ".dcm"),
    (0, b"DDS ", ".dds"),
    (0, b"qoif", ".qoi"),
    (0, b"FUJIFILMCCD-RAW", ".raf"),
    (0, b"IIRO", ".orf"),
    (0, b"IIRS", ".orf"),
    (0, b"MMOR", ".orf"),
    (0, b"IIU\0", ".rw2"),
    (0, b"\0MRM", ".mrw"),
    (0, b"FOVb", ".x3f"),
    (4, b"ftypcrx ", ".cr3"),
    *((4, b"ftyp" + brand, ".heic") for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1")),
)
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Kinds of integers that Pillow lacks beside those that it reads: (byte order, photometric, sample
# format, fill order, bits, extra samples) -> mode and raw mode. Levels tell apart which is which.
_MORE_TIFF = {
    (order, photometric, (sample_format,), 1, (bits,), ()): (mode, raw_mode)
    for order, suffix in ((b"II", ""), (b"MM", "B"))
    for photometric in (0, 1)
    for sample_format, bits, mode, raw_mode in (
        (1, 16, f"I;16{suffix}", f"I;16{suffix}"),
        (1, 32, "I", f"I;32{suffix}"),
        (2, 8, "L", "L"),
        (2, 16, "I", f"I;16{suffix}S"),
        (2, 32, "I", f"I;32{suffix}S"),
    )
}
for _kind, _modes in _MORE_TIFF.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_kind, _modes)
# libtiff gives compressed levels in the byte order of the machine, whatever that of the file.
_NATIVE = {
    f"{kind}{order}{sign}": f"{kind}N{sign}"
    for kind, sign in (("I;32", ""), ("I;16", "S"), ("I;32", "S"), ("F;32", "F"))
    for order in ("", "B")
}
_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706  # TIFF tags

_TOLD_BY_BYTES = [format for format in _PILLOW_FORMATS if format != "TGA"]
READ_EXTENSIONS = tuple(extension for known in _PILLOW_FORMATS.values() for extension in known)
IMAGE_EXTENSIONS = (*READ_EXTENSIONS, *_UNREAD)


class UnreadFormat(Exception):
    """An image of a format that is not read; the text says what would read it."""


def extension_of(name: str) -> str:
    """The lower-case extension of a file's name, with its dot."""
    return posixpath.splitext(name)[1].lower()


def is_read(extension: str) -> bool:
    """Whether images with this extension are read, here and now.

    Example:
        >>> is_read(".jfif"), is_read(".psd")
        (True, False)
    """
    return extension in READ_EXTENSIONS or (extension in _HEIF_EXTENSIONS and _heif_is_installed())


def open_image(data: bytes, name: str = "") -> Image.Image:
    """Opens an image file with Pillow, without decoding its pixels.

    What a file is, its first bytes say, whatever its name. The name counts where these are not
    known: for TGA, and for camera raw, which is often a TIFF that begins with a small preview.

    Raises:
        UnreadFormat: it is one of those that are known and not read.
        PIL.UnidentifiedImageError: it is no image.
        Exception: what else Pillow's decoders raise.
    """
    extension = extension_of(name)
    formats = [*_TOLD_BY_BYTES, "TGA"] if extension == ".tga" else [*_TOLD_BY_BYTES]
    if _is_heif(data) and _heif_is_installed():
        formats.append("HEIF")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError:
        why = _why_unread(data, extension)
        if why:
            raise UnreadFormat(why) from None
        raise
    if image.format == "TIFF" and (extension in _RAW_EXTENSIONS or _is_raw(image, data)):
        raise UnreadFormat(_RAW)
    _say_byte_order(image)
    return image


def _say_byte_order(image: Image.Image) -> None:
    """Corrects the byte order in which Pillow is going to take compressed levels for its own."""
    if image.format == "TIFF":
        image.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
            if tile.codec_name == "libtiff"
            else tile
            for tile in image.tile  # type: ignore[attr-defined]
        ]


def _why_unread(data: bytes, extension: str) -> str:
    """What would read a file that Pillow does not know; nothing where it is no image at all."""
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return _AVIF
    for place, signature, kind in _SIGNATURES:
        if data.startswith(signature, place):
            return _UNREAD[kind]
    if data.startswith(_TIFF_SIGNATURES):
        _check_whole(data)
        return _RAW if extension in _RAW_EXTENSIONS else f"TIFF of another kind; {_CONVERT}"
    return _UNREAD.get(extension, "")


def _check_whole(data: bytes) -> None:
    """Refuses a TIFF that ends in front of its directory, which often stands behind the pixels."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    place = data[8:16] if int.from_bytes(data[2:4], order) == 43 else data[4:8]
    if int.from_bytes(place, order) + 2 > len(data):
        raise OSError("image file is truncated in front of its directory")


def _is_raw(image: Image.Image, data: bytes) -> bool:
    """Whether a TIFF is camera raw, of which Pillow would show the preview."""
    tags = getattr(image, "tag_v2", {})
    preview = int(tags.get(_SUBFILE_TYPE, 0)) & 1 and _SUB_IFDS in tags
    return bool(preview) or _DNG_VERSION in tags or data.startswith(b"CR", 8)


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and any(
        data.startswith(s, place) for place, s, kind in _SIGNATURES if kind == ".heic"
    )


@cache
def _heif_is_installed() -> bool:
    """Whether pillow-heif is there; it is told to Pillow when it is first needed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


class PillowLimit:
    """Keeps Pillow from refusing, or warning of, what we allow.

    Its own limit holds for the whole process, so it is only ever raised, and is as it was again
    as soon as no thread decodes what lies above it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._before: int | None = None

    def allows(self, most: int) -> bool:
        """Whether so many pixels are below it, and no other thread is about to lower it."""
        known = Image.MAX_IMAGE_PIXELS
        return known is None or (known >= most and not self._wanted)

    @contextmanager
    def raised_to(self, most: int) -> Iterator[None]:
        """Raises it for a while."""
        with self._lock:
            if not self._wanted:
                self._before = Image.MAX_IMAGE_PIXELS
            self._wanted.append(most)
            Image.MAX_IMAGE_PIXELS = max(*self._wanted, self._before or 0)
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(most)
                if not self._wanted:
                    Image.MAX_IMAGE_PIXELS = self._before


pillow_limit = PillowLimit()
