from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.decoding import BadImage, DecodeSettings, LazyImage
from franca_fast.data.pixels.levels import NARROW, NOT_FINITE, depth_of, level_range, low_bytes_of
from franca_fast.errors import InputError
from python_tests.data.deep_files import pgm_file, png_file, tiff_file
from python_tests.data.files import encoded

TYPES = ("u2", "i2", "u4", "i4")


def pixels(data: bytes | Image.Image, levels: str = "full") -> np.ndarray:
    return np.asarray(LazyImage(data, DecodeSettings(levels=levels)).load())


def remark(data: bytes, levels: str = "full") -> str:
    lazy = LazyImage(data, DecodeSettings(levels=levels))
    lazy.load()
    return lazy.remark


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    low, high = float(low), float(high)
    share = (values.astype(np.float64) - low) / (high - low)
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def random_levels(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Levels of a type that fill all of it, or a part that 8, 12 or 16 bits hold."""
    limits = np.iinfo(kind)
    ranges = [(0, 255), (0, 4095), (0, 65535), (-1024, 3071), (limits.min, limits.max)]
    ranges = [r for r in ranges if limits.min <= r[0] and r[1] <= limits.max]
    low, high = ranges[rng.integers(len(ranges))]
    shape = rng.integers(1, 9, 2)
    return rng.integers(low, high, shape, np.dtype(kind), endpoint=True)


def full_range(values: np.ndarray) -> tuple[int, int]:
    limits = np.iinfo(values.dtype)
    if limits.bits == 16:
        return limits.min, limits.max
    standard = ((0, 255), (0, 65535), (-32768, 32767), (limits.min, limits.max))
    return next(r for r in standard if r[0] <= values.min() and values.max() <= r[1])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("order", "compressed"), [*itertools.product("<>", (False, True))])
def test_integers_of_a_tiff_are_mapped_by_their_type(
    kind: str, order: str, compressed: bool
) -> None:
    rng = np.random.default_rng(TYPES.index(kind))
    for _ in range(40):
        values = random_levels(rng, kind)
        white_is_zero = bool(rng.integers(2))
        data = tiff_file(values, order, compressed=compressed, white_is_zero=white_is_zero)
        flip = 255 if white_is_zero else 0
        low, high = full_range(values)
        expected = (values.astype(object) - low) * 256 // (high - low + 1)
        np.testing.assert_array_equal(pixels(data) ^ flip, expected.astype(np.uint8))
        given = stretched(values, -1024, 3071)
        np.testing.assert_array_equal(pixels(data, "-1024:3071") ^ flip, given)
        if values.min() < values.max():
            own = stretched(values, values.min(), values.max())
            np.testing.assert_array_equal(pixels(data, "minmax") ^ flip, own)


@pytest.mark.parametrize("write", [png_file, tiff_file, lambda v: pgm_file(v, 65535)])
def test_sixteen_bits_keep_their_upper_eight(write) -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).integers(0, 65536, (5, 7), np.uint16)
        np.testing.assert_array_equal(pixels(write(values)), values >> 8)


@pytest.mark.parametrize("most", [256, 1000, 4095, 10_000, 65535])
def test_levels_of_a_pgm_reach_from_0_to_the_greatest_that_it_names(most: int) -> None:
    values = np.random.default_rng(0).integers(0, most, (9, 9), np.uint16, endpoint=True)
    whole = pixels(pgm_file(values, most)).astype(int)
    assert np.abs(whole - values * (255 / most)).max() <= 1
    np.testing.assert_array_equal(
        pixels(pgm_file(values, most), "10:200"), stretched(values, 10, 200)
    )


def test_twelve_bits_of_a_tiff_are_a_type() -> None:
    packed = np.frombuffer(bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x10]), np.uint8)
    data = tiff_file(packed.reshape(1, 6), tags={256: 4, 258: 12, 339: 1})
    assert pixels(data).tolist() == [[255, 0, 128, 1]]


def test_signed_bytes_are_no_unsigned_ones() -> None:
    values = np.array([[-128, -1, 0, 127]], np.int8)
    for levels in ("full", "minmax", "0:9"):  # they have 8 bits, which stay as they are
        assert pixels(tiff_file(values), levels).tolist() == [[0, 127, 128, 255]]
    assert pixels(tiff_file(values, white_is_zero=True)).tolist() == [[255, 128, 127, 0]]


@pytest.mark.parametrize("irreversible", [False, True])
def test_jpeg_2000(irreversible: bool) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = encoded(Image.fromarray(ramp), "JPEG2000", irreversible=irreversible)
    assert np.abs(pixels(data).astype(int) - (ramp >> 8)).max() <= 1
    assert np.abs(pixels(data, "0:4095").astype(int) - stretched(ramp, 0, 4095)).max() <= 1


@pytest.mark.parametrize("bands", [2, 3, 4])
@pytest.mark.parametrize(
    "write",
    [
        png_file,
        tiff_file,
        lambda v: tiff_file(v, ">"),
        lambda v: tiff_file(v, compressed=True),
        lambda v: tiff_file(v, ">", compressed=True),
    ],
)
def test_colours_of_sixteen_bits_are_mapped_by_all_of_them(bands: int, write) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 5, bands), np.uint16)
    if bands == 2 and write is not png_file:
        with pytest.raises(BadImage):
            pixels(write(values))
        return
    data, colours = write(values), values[..., : 1 if bands == 2 else 3]
    colours = np.broadcast_to(colours, (*colours.shape[:2], 3))
    np.testing.assert_array_equal(pixels(data), colours >> 8)
    np.testing.assert_array_equal(pixels(data, "0:4095"), stretched(colours, 0, 4095))
    own = stretched(colours, colours.min(), colours.max())
    np.testing.assert_array_equal(pixels(data, "minmax"), own)
    assert remark(data) == NARROW and remark(data, "0:4095") == ""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_floating_point_has_no_range_of_its_own(order: str, compressed: bool) -> None:
    values = np.random.default_rng(0).normal(0, 1000, (9, 8)).astype(np.float32)
    data = tiff_file(values, order, compressed=compressed)
    with pytest.raises(BadImage, match=r"unsupported mode .*--levels minmax or LOW:HIGH"):
        LazyImage(data)
    np.testing.assert_array_equal(pixels(data, "-500:500"), stretched(values, -500, 500))
    own = stretched(values, values.min(), values.max())
    np.testing.assert_array_equal(pixels(data, "minmax"), own)


def test_what_is_not_finite_is_black_or_white_and_remarked_on() -> None:
    values = np.array([[np.nan, -np.inf, 0, 1, 2, np.inf]], np.float32)
    for levels in ("minmax", "0:2"):
        assert pixels(tiff_file(values), levels).tolist() == [[0, 0, 0, 128, 255, 255]]
        assert remark(tiff_file(values), levels) == NOT_FINITE
    nothing = np.full((2, 2), np.nan, np.float32)
    assert pixels(tiff_file(nothing), "minmax").tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("kind", [*TYPES, "f4"])
def test_one_level_everywhere_is_black_by_minmax(kind: str) -> None:
    assert not pixels(tiff_file(np.full((3, 4), 77, kind)), "minmax").any()


@pytest.mark.parametrize(
    ("values", "levels", "expected"),
    [
        (np.arange(0, 4096, 16, np.uint16).reshape(16, 16), "full", NARROW),
        (np.arange(-1024, 3072, 16, np.int16).reshape(16, 16), "full", NARROW),
        (np.arange(31, dtype=np.uint32)[None], "full", NARROW),
        (np.arange(32, dtype=np.uint32)[None], "full", ""),
        (np.arange(0, 65536, 256, np.uint16)[None], "full", ""),
        (np.arange(0, 65536, 256, np.uint16)[None], "0:1000000", NARROW),
        (np.arange(0, 4096, 16, np.uint16)[None], "0:4095", ""),
        (np.full((2, 2), 300, np.uint16), "minmax", ""),
        (np.zeros((2, 2), np.uint8), "full", ""),
    ],
)
def test_levels_that_hardly_use_their_range_are_remarked_on(
    values: np.ndarray, levels: str, expected: str
) -> None:
    assert remark(tiff_file(values), levels) == expected


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_eight_bits_are_never_changed(format: str) -> None:
    image = Image.fromarray(np.arange(100, 150, dtype=np.uint8).reshape(5, 10)).convert("RGB")
    data = encoded(image, format, **({"lossless": True} if format == "WEBP" else {}))
    for levels in ("full", "minmax", "0:9"):
        np.testing.assert_array_equal(pixels(data, levels), np.asarray(image))


def test_images_that_pillow_made_are_mapped_by_their_mode() -> None:
    values = np.arange(0, 65536, 1024).reshape(8, 8)
    for kind in (np.uint16, np.int32):
        np.testing.assert_array_equal(pixels(Image.fromarray(values.astype(kind))), values >> 8)


def test_large_images_are_mapped_in_pieces() -> None:
    values = np.arange(3_000_000, dtype=np.uint32).reshape(1500, 2000) * 1431
    np.testing.assert_array_equal(pixels(tiff_file(values)), values >> 24)


def test_low_bytes_are_had_of_sixteen_bit_colours_only() -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), np.uint16)
    low = low_bytes_of(Image.open(io.BytesIO(png_file(colours))))
    np.testing.assert_array_equal(np.asarray(low), colours & 255)
    plain = Image.open(io.BytesIO(png_file((colours >> 8).astype(np.uint8))))
    assert low_bytes_of(plain) is None and depth_of(plain, b"") is None


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ("full", None),
        ("minmax", None),
        ("0:4095", (0, 4095)),
        ("-1024:3071", (-1024, 3071)),
        ("-0.5:1e3", (-0.5, 1000)),
    ],
)
def test_which_levels_there_are(levels: str, expected: tuple[float, float] | None) -> None:
    assert level_range(levels) == expected


@pytest.mark.parametrize("levels", ["", "max", "1", "5:3", "2:2", "0:nan", "0:inf", "1:2:3", 7])
def test_other_levels_are_refused(levels: str) -> None:
    with pytest.raises(InputError, match=r"levels: .*; accepted: full, minmax, or two numbers"):
        level_range(levels)
