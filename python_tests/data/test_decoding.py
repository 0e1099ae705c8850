from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from franca_fast.data import decode_rgb, decoding
from franca_fast.data.decoding import (
    BadImage,
    DecodeSettings,
    LazyImage,
    is_image_name,
)
from franca_fast.errors import InputError
from python_tests.data.files import encoded, picture, png


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
        ("RGBA", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "JPEG"),
    ],
)
def test_modes_become_the_rgb_that_pillow_shows(mode: str, format: str) -> None:
    data = encoded(picture(1, mode=mode), format)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    image = decode_rgb(data)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_palette_and_bilevel_images() -> None:
    for image in (picture(2).quantize(16), picture(2).convert("1")):
        np.testing.assert_array_equal(
            np.asarray(decode_rgb(encoded(image))), np.asarray(image.convert("RGB"))
        )


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = picture(3).quantize(8)
    data = encoded(image, transparency=bytes([0, 128] + [255] * 6))
    np.testing.assert_array_equal(np.asarray(decode_rgb(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(format: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16))
    upright.paste((255, 255, 255), (0, 0, 16, 8))  # the upper left quarter
    turned = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for method in turned.get(orientation, []):
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lazy = LazyImage(encoded(stored, format, exif=exif))
    assert lazy.size == (32, 16)
    difference = np.asarray(lazy.load(), np.int64) - np.asarray(upright, np.int64)
    assert np.abs(difference).mean() < 8  # JPEG and WebP lose a little


def test_a_jpeg_is_decoded_no_larger_than_asked_for() -> None:
    data = encoded(picture(4, (640, 480)), "JPEG")
    assert LazyImage(data).load((100, 75)).size == (160, 120)
    assert LazyImage(data).load((200, 75)).size == (320, 240)
    assert LazyImage(data).load((641, 480)).size == (640, 480)


def _png_claiming(width: int, height: int) -> bytes:
    """A valid header of a huge image with hardly any pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(100))
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, pixels)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just some text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(picture(5, (64, 64)), "JPEG")[:-400], "damaged image"),
        (png(5, (64, 64))[:-200], "damaged image"),
        (encoded(picture(5), "GIF")[:-200], "damaged image"),
        (_png_claiming(100_000, 100_000), "too many pixels"),
        (_png_claiming(9_000, 9_000), "too many pixels"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "unsupported mode"),
    ],
)
def test_bad_files_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode_rgb(data)
    assert caught.value.reason == reason


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(BadImage, match="no pixels"):
        LazyImage(Image.new("RGB", (0, 4)))


def test_the_number_of_pixels_can_be_limited() -> None:
    with pytest.raises(BadImage, match=r"20 x 16, at most 319 in all"):
        decode_rgb(png(0), max_pixels=319)
    assert decode_rgb(png(0), max_pixels=320).size == (20, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_pixels": 0}, "max_image_pixels: 0; accepted: a whole number from 1 on"),
        ({"max_pixels": 1e6}, "max_image_pixels: 1000000.0; accepted"),
        ({"levels": "4095"}, "levels: '4095'; accepted: full, minmax"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecodeSettings(**values)


def test_damaged_exif_does_not_lose_the_image() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"
    assert decode_rgb(encoded(picture(6), "JPEG", exif=exif)).size == (20, 16)


def test_flipped_bits_never_raise_anything_else() -> None:
    random = np.random.default_rng(0)
    good = [encoded(picture(7, (40, 40)), f) for f in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")]
    for trial in range(300):
        data = bytearray(good[trial % len(good)])
        for place in random.integers(0, len(data), 8):
            data[place] ^= 1 << random.integers(8)
        try:
            assert decode_rgb(bytes(data)).mode == "RGB"
        except BadImage as error:
            assert error.reason


def test_which_names_are_images() -> None:
    assert is_image_name("a/b.JPEG") and is_image_name("x.webp")
    assert not any(map(is_image_name, ["a.txt", "jpg", "a/._b.jpg", "a.jpg/b"]))


def test_an_image_that_pillow_has_opened_is_taken_as_it_is() -> None:
    image = picture(1, mode="L")
    assert LazyImage(image).load() is image
    assert LazyImage(picture(1, mode="RGBA")).load().mode == "RGB"
    turned = Image.Exif()
    turned[0x0112] = 6
    opened = Image.open(io.BytesIO(encoded(picture(1, (20, 16)), "JPEG", exif=turned)))
    assert LazyImage(opened.convert("RGB")).size == (16, 20)
    with pytest.raises(BadImage, match="too many pixels"):
        LazyImage(image, DecodeSettings(9))


def test_what_is_too_large_names_the_option_that_lifts_the_limit() -> None:
    for data in (png(0), _png_claiming(100_000, 100_000)):
        with pytest.raises(BadImage) as caught:
            LazyImage(data, DecodeSettings(9))
        assert caught.value.reason == "too many pixels"
        assert "at most 9" in caught.value.detail
        assert "--max-image-pixels, or train.max_image_pixels" in caught.value.detail


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory when reading image file")])
def test_an_image_that_memory_cannot_hold_is_a_bad_one(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = LazyImage(png(0))

    def fail(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr(type(lazy._image), "load", fail)
    with pytest.raises(BadImage) as caught:
        lazy.load()
    assert caught.value.reason == "too large for memory"


def test_an_image_for_which_there_is_not_enough_memory_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding, "free_memory", lambda: 1 << 30)
    settings = DecodeSettings(10**9)
    with pytest.raises(BadImage, match=r"too large for memory \(1\.5 GiB for its pixels, 1\.0 GiB"):
        LazyImage(_png_claiming(20_000, 20_000), settings).load()
    with pytest.raises(BadImage, match="damaged image"):  # a quarter of it would be there
        LazyImage(_png_claiming(10_000, 10_000), settings).load()
