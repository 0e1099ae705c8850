from __future__ import annotations

import sys
import threading
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.decoding import (
    BadImage,
    DecodeSettings,
    LazyImage,
    decode_rgb,
    is_image_name,
    is_readable_name,
)
from franca_fast.data.pixels import formats
from franca_fast.data.pixels.formats import READ_EXTENSIONS, UnreadFormat, is_read, open_image
from python_tests.data.deep_files import tiff_file
from python_tests.data.files import encoded, picture

UNREAD = [".heic", ".hif", ".nef", ".dng", ".arw", ".cr2", ".jxl", ".psd", ".exr", ".hdr", ".dcm"]


@pytest.fixture(autouse=True)
def without_pillow_heif(monkeypatch: pytest.MonkeyPatch):
    """Whatever is installed here."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats._heif_is_installed.cache_clear()
    yield
    formats._heif_is_installed.cache_clear()


def test_which_names_are_images() -> None:
    for extension in (*READ_EXTENSIONS, *UNREAD):
        for name in (f"a/b{extension}", f"B.x{extension.upper()}"):
            assert is_image_name(name)
            assert is_readable_name(name) == (extension in READ_EXTENSIONS)
    for name in ("a.txt", "jpg", "a/._b.jpg", "a/.heic", "a.jpg/b", "a.svg", "a.pdf", "a.eps"):
        assert not is_image_name(name) and not is_readable_name(name)


@pytest.mark.parametrize(
    ("format", "extensions"),
    [
        ("JPEG", [".jfif", ".jif", ".pjpeg", ".pjp", ".jpe"]),
        ("PNG", [".apng"]),
        ("AVIF", [".avif", ".avifs"]),
        ("JPEG2000", [".jp2", ".j2k", ".jpx"]),
        ("PPM", [".pnm"]),
        ("DIB", [".dib"]),
        ("ICO", [".ico"]),
        ("TGA", [".tga"]),
    ],
)
def test_formats_that_pillow_reads_by_their_bytes(format: str, extensions: list[str]) -> None:
    image = picture(0, (32, 32))
    data = encoded(image, format, **({"irreversible": False} if format == "JPEG2000" else {}))
    for extension in extensions:
        assert is_read(extension)
        found = LazyImage(data, name=f"a{extension}").load()
        difference = np.abs(np.asarray(found, int) - np.asarray(image))
        assert difference.mean() < 8


def test_a_tga_is_known_by_its_name_alone() -> None:
    data = encoded(picture(0), "TGA")
    with pytest.raises(BadImage, match="not an image"):
        LazyImage(data, name="a.png")


@pytest.mark.parametrize("extension", UNREAD)
def test_other_formats_are_named_with_what_reads_them(extension: str) -> None:
    with pytest.raises(BadImage) as caught:
        LazyImage(b"whatever it is", name=f"a/b{extension.upper()}")
    assert caught.value.reason == "format that is not read"
    assert "pillow-heif" in caught.value.detail or "first" in caught.value.detail


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(20), "pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1" + bytes(20), "pip install pillow-heif"),
        (b"\0\0\0\x18ftypcrx " + bytes(20), "camera raw"),
        (b"8BPS\0\1" + bytes(20), "Photoshop"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (bytes(128) + b"DICM" + bytes(20), "DICOM"),
        (b"II*\0" + bytes(20), "TIFF of another kind"),
        (tiff_file(np.ones((4, 4))), "TIFF of another kind"),
    ],
)
def test_their_bytes_tell_them_whatever_their_name(data: bytes, text: str) -> None:
    for name in ("a.jpg", "", "a.heic"):
        with pytest.raises(BadImage, match=text) as caught:
            LazyImage(data, name=name)
        assert caught.value.reason == "format that is not read"


def test_the_preview_in_a_camera_raw_is_not_taken_for_the_image() -> None:
    levels = np.zeros((4, 4, 3), np.uint8)
    for tags in ({254: 1, 330: 8}, {50706: b"\1\4\0\0"}):
        with pytest.raises(UnreadFormat, match="camera raw"):
            open_image(tiff_file(levels, tags=tags), "a.tif")
    for name in ("a.nef", "a.DNG"):
        with pytest.raises(UnreadFormat, match="camera raw"):
            open_image(tiff_file(levels), name)
    assert open_image(tiff_file(levels, tags={254: 0}), "a.tif").size == (4, 4)


def test_an_image_with_a_wrong_name_is_read() -> None:
    assert decode_rgb(encoded(picture(0), "JPEG")).size == (20, 16)
    for name in ("a.heic", "a.psd", "a.png"):
        assert LazyImage(encoded(picture(0), "JPEG"), name=name).format == "JPEG"


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def register() -> None:
        calls.append("registered")
        Image.register_open("HEIF", lambda *_: Image.new("RGB", (3, 2)), lambda _: True)

    module = types.SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    formats._heif_is_installed.cache_clear()
    assert is_readable_name("a.heic") and is_read(".hif")
    assert decode_rgb(b"\0\0\0\x18ftypheic" + bytes(20)).size == (3, 2)
    assert calls == ["registered"]


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg/>"]
)
def test_documents_and_drawings_are_no_images(data: bytes) -> None:
    with pytest.raises(BadImage, match="not an image"):
        LazyImage(data)


@pytest.mark.parametrize("limit", [100, 319, None])
def test_the_limit_of_pillow_follows_ours(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_rgb(encoded(picture(0)), max_pixels=320).size == (20, 16)
        webp = encoded(picture(0), "WEBP")  # looks at the limit when it loads, too
        assert LazyImage(webp, DecodeSettings(320)).load().size == (20, 16)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_threads_leave_the_limit_of_pillow_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data, failed = encoded(picture(0)), []

    def work(most: int) -> None:
        for _ in range(100):
            try:
                decode_rgb(data, max_pixels=most)
            except BadImage as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(320 + i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and Image.MAX_IMAGE_PIXELS == 100


def test_a_limit_above_ours_is_not_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**9)
    with formats.pillow_limit.raised_to(1000):
        assert Image.MAX_IMAGE_PIXELS == 10**9
    with formats.pillow_limit.raised_to(2 * 10**9):
        assert Image.MAX_IMAGE_PIXELS == 2 * 10**9
    assert Image.MAX_IMAGE_PIXELS == 10**9


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_tiff_that_ends_in_front_of_its_directory_is_damaged(share: float, big: bool) -> None:
    data = encoded(picture(0, (40, 40)), "TIFF", big_tiff=big)
    cut = int(share * len(data))
    place = data[8:16] if big else data[4:8]
    moved = len(data).to_bytes(len(place), "little")
    data = data.replace(place, moved, 1)  # as of programs that write the directory last
    with pytest.raises(BadImage, match="damaged image"):
        decode_rgb(data[:cut])
