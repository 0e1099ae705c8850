from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from franca_fast.data import decode_rgb
from franca_fast.data.decoding import LazyImage
from franca_fast.data.pixels.orientation import is_transposed, orientation_of, upright
from python_tests.data.deep_files import png_file, tiff_file
from python_tests.data.files import encoded

UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
# What a camera that is held so stores of an upright image.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()[len(b"Exif\0\0") :]


def xmp(orientation: int, *, as_element: bool = False) -> bytes:
    says = b'tiff:Orientation="%d"/>' % orientation
    if as_element:
        says = b"><tiff:Orientation>%d</tiff:Orientation></rdf:Description>" % orientation
    return b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description ' + says + b"</x:xmpmeta>"


def profile(block: bytes, kind: bytes = b"exif") -> bytes:
    """As ImageMagick writes it."""
    digits = block.hex().encode()
    lines = b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return b"\n%s\n%8d\n%s\n" % (kind, len(block), lines)


def profile_chunk(kind: bytes, keyword: bytes, text: bytes) -> tuple[bytes, bytes]:
    if kind == b"tEXt":
        return kind, keyword + b"\0" + text
    if kind == b"zTXt":
        return kind, keyword + b"\0\0" + zlib.compress(text)
    return kind, keyword + b"\0\0\0\0\0" + text


def chunks_of(orientation: int) -> list[tuple[bytes, bytes]]:
    """Every way in which a PNG says it."""
    block = exif(orientation)
    keyword = b"Raw profile type exif"
    return [
        (b"eXIf", block),
        *(profile_chunk(k, keyword, profile(block)) for k in (b"tEXt", b"zTXt", b"iTXt")),
        profile_chunk(
            b"zTXt", b"Raw profile type APP1", profile(b"Exif\0\0" + block, kind=b"generic")
        ),
        profile_chunk(b"iTXt", b"XML:com.adobe.xmp", xmp(orientation)),
        profile_chunk(b"iTXt", b"XML:com.adobe.xmp", xmp(orientation, as_element=True)),
    ]


def check(data: bytes) -> None:
    lazy = LazyImage(data)
    assert lazy.size == (3, 2)  # before the pixels are decoded
    np.testing.assert_array_equal(np.asarray(lazy.load()), UPRIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("way", range(7))
def test_a_png_is_turned_by_whatever_says_so_and_wherever_it_stands(
    orientation: int, way: int
) -> None:
    stored, chunk = STORED[orientation], chunks_of(orientation)[way]
    check(png_file(stored, before=(chunk,)))
    check(png_file(stored, behind=(chunk,)))
    check(png_file(stored, before=((b"tIME", bytes(7)),), behind=((b"tEXt", b"a\0b"), chunk)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["WEBP", "AVIF", "TIFF", "JPEG"])
def test_other_formats_are_turned_once(orientation: int, format: str) -> None:
    big = np.kron(UPRIGHT, np.ones((16, 16, 1), np.uint8))
    stored = np.kron(STORED[orientation], np.ones((16, 16, 1), np.uint8))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100}}
    block = b"Exif\0\0" + exif(orientation)
    data = encoded(Image.fromarray(stored), format, exif=block, **options.get(format, {}))
    lazy = LazyImage(data)
    assert lazy.size == (48, 32)
    difference = np.asarray(lazy.load(), int) - big
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["WEBP", "TIFF", "JPEG"])
def test_xmp_says_it_where_exif_does_not(orientation: int, format: str) -> None:
    image = Image.fromarray(STORED[orientation])
    if format == "TIFF":
        data = tiff_file(STORED[orientation], tags={700: xmp(orientation)})
    else:
        data = encoded(image, format, xmp=xmp(orientation), lossless=True)
    lazy = LazyImage(data)
    assert lazy.size == (3, 2) and lazy.load().size == (3, 2)
    if format != "JPEG":
        np.testing.assert_array_equal(np.asarray(lazy.load()), UPRIGHT)


def test_exif_counts_more_than_xmp() -> None:
    text = profile_chunk(b"iTXt", b"XML:com.adobe.xmp", xmp(3))
    check(png_file(STORED[6], before=(text,), behind=((b"eXIf", exif(6)),)))
    check(tiff_file(STORED[6], tags={0x0112: 6, 700: xmp(3)}))
    data = encoded(Image.fromarray(STORED[8]), "WEBP", lossless=True, exif=exif(8), xmp=xmp(3))
    check(data)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", b""),
        (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"),
        (b"eXIf", exif(6)[:-9]),
        (b"eXIf", exif(9)),
        (b"zTXt", b"Raw profile type exif\0\0no zlib"),
        (b"tEXt", b"Raw profile type exif\0\nexif\n 9\nno digits"),
        (b"tEXt", b"Raw profile type exif"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0no zlib"),
        (b"iTXt", b"XML:com.adobe.xmp\0"),
        (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="9"'),
    ],
)
def test_damaged_metadata_says_nothing(chunk: tuple[bytes, bytes]) -> None:
    check(png_file(UPRIGHT, behind=(chunk,)))


def test_a_text_that_decompresses_to_gigabytes_is_not_read_whole() -> None:
    bomb = b"Raw profile type exif\0\0" + zlib.compress(bytes(300 << 20))
    image = Image.open(io.BytesIO(png_file(UPRIGHT)))
    assert orientation_of(image, png_file(UPRIGHT, behind=((b"zTXt", bomb),))) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_afterwards(orientation: int) -> None:
    turned = upright(Image.fromarray(STORED[orientation]), orientation)
    np.testing.assert_array_equal(np.asarray(turned), UPRIGHT)
    assert is_transposed(orientation) == (STORED[orientation].shape != UPRIGHT.shape)


def test_an_image_that_pillow_opened_is_turned_by_what_it_knows() -> None:
    data = png_file(STORED[6], before=(chunks_of(6)[1],))
    np.testing.assert_array_equal(decode_rgb(data), UPRIGHT)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(LazyImage(opened).load()), UPRIGHT)
