"""Levels of more than 8 bits, and what makes them 0 to 255.

Pillow's mode "I" is not one thing: signed and unsigned integers of 16 and 32 bits become it, and
unsigned ones above 2^31 wrap. So what a file holds is read from its header.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from franca_fast.errors import InputError

ACCEPTED = "full, minmax, or two numbers LOW:HIGH with LOW below HIGH, such as -1024:3071"
OTHER_LEVELS = "--levels minmax or LOW:HIGH, or train.levels in a configuration, maps them"
NARROW = "levels use little of their range"
NOT_FINITE = "levels that are not finite"
_FEWEST_LEVELS = 32  # of 256; with fewer an image is dark or flat
_PIXELS_AT_ONCE = 1 << 20

_Values = NDArray[np.number]
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO = 0
_SIGNED, _FLOAT = 2, 3  # TIFF sample formats
_SIZ = b"\xff\x4f\xff\x51"  # JPEG 2000: the first two markers
_SIZ_PRECISION = 42  # bytes from there to the precision of the first component


class Depth(NamedTuple):
    """What the levels of an image are, where they have more than 8 bits or a sign.

    Attributes:
        least, most: of the type; both 0 for floating point.
        scale, offset: Pillow's value is scale * level + offset.
        white_is_zero: whether the least level is white.
    """

    least: int
    most: int
    scale: float = 1.0
    offset: float = 0.0
    white_is_zero: bool = False

    @property
    def is_floating(self) -> bool:
        """Whether the type has no range of its own."""
        return self.least == self.most


_UNSIGNED_16 = Depth(0, 65535)
_SIGNED_32 = Depth(-(2**31), 2**31 - 1)
_FLOATING = Depth(0, 0)
# Of these the smallest that holds all levels is taken for the range of 32-bit integers.
_STANDARD_RANGES = ((0, 255), (0, 65535), (-32768, 32767))


def level_range(levels: str) -> tuple[float, float] | None:
    """The two numbers of "LOW:HIGH"; None for "full" and "minmax".

    Raises:
        InputError: neither of these.

    Example:
        >>> level_range("-1024:3071"), level_range("minmax")
        ((-1024.0, 3071.0), None)
    """
    if levels in ("full", "minmax"):
        return None
    try:
        low, high = map(float, levels.split(":"))
    except (ValueError, AttributeError):
        low = high = math.nan
    if not (math.isfinite(high - low) and low < high):
        raise InputError(f"levels: {levels!r}; accepted: {ACCEPTED}")
    return low, high


def depth_of(image: Image.Image, data: bytes) -> Depth | None:
    """What the header says of the levels; None for 8 bits or fewer.

    Args:
        image: opened and not yet loaded, since loading forgets what the file holds.
        data: the file, as far as it is known.
    """
    mode, deep = image.mode, image.mode in ("I", "F") or image.mode.startswith("I;16")
    if image.format == "TIFF":
        return _depth_of_tiff(image, deep)
    raw_mode, most = _tile_arguments(image)
    if image.format == "PPM" and mode == "I":
        return Depth(0, 65535, scale=65535 / (most or 65535))  # Pillow scales what is less
    if image.format == "JPEG2000":
        place = data.find(_SIZ) + _SIZ_PRECISION
        precision = 1 + (data[place] & 0x7F) if _SIZ_PRECISION <= place < len(data) else 8
        signed = precision > 8 and data[place] & 0x80
        shift = 2.0 ** max(0, 16 - precision)
        deep_depth = Depth(0, 65535, shift, shift * 2.0 ** (precision - 1) if signed else 0.0)
        return deep_depth if precision > 8 else None
    if ";16" in raw_mode or (deep and mode != "F" and image.format == "PNG"):
        return _UNSIGNED_16
    if not deep:
        return None
    return {"I": _SIGNED_32, "F": _FLOATING}.get(mode, _UNSIGNED_16)


def _depth_of_tiff(image: Image.Image, deep: bool) -> Depth | None:
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(_BITS_PER_SAMPLE, (1,))[0])
    kind = int(tags.get(_SAMPLE_FORMAT, (1,))[0])
    inverted = deep and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if kind == _FLOAT and deep:
        return _FLOATING._replace(white_is_zero=inverted)
    if kind == _SIGNED and (deep or image.mode == "L"):
        half = 2 ** (bits - 1)
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return Depth(-half, half - 1, white_is_zero=inverted)
    known = bits > 8 and (deep or image.mode in ("RGB", "RGBA"))
    return Depth(0, 2**bits - 1, white_is_zero=inverted) if known else None


def _tile_arguments(image: Image.Image) -> tuple[str, int | None]:
    """The raw mode in which Pillow is going to unpack a file, and the greatest level of a PPM."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        if isinstance(arguments, str):
            return arguments, None
        if isinstance(arguments, tuple) and arguments:
            most = arguments[1] if tile[0].startswith("ppm") else None
            return str(arguments[0]), most
    return "", None


def to_eight_bits(
    image: Image.Image, depth: Depth, levels: str, low_bytes: Callable[[], Image.Image | None]
) -> tuple[Image.Image, str]:
    """Maps levels to 0 to 255.

    "full" maps the range of the type, of 32-bit integers the smallest of 0..255, 0..65535,
    -32768..32767 and the whole range that holds all levels; "minmax" the least and the greatest
    level of the image, over all colours; "LOW:HIGH" these two, and what lies beyond becomes 0 or
    255. In floating-point images infinite levels become 0 or 255, and those that are no number 0.

    Args:
        image: loaded, of mode "I", "I;16", "F" or "L", or of 16-bit colours, of which Pillow keeps
            the upper eight bits.
        depth: what its levels are; of floating-point ones "full" has none to map.
        levels: see above.
        low_bytes: gives the lower eight bits of 16-bit colours, None where they are not to be had.

    Returns:
        an image of mode "L" or "RGB", and a remark: `NARROW`, `NOT_FINITE` or nothing.
    """
    if image.mode == "L" or levels == "full":
        mapped = _full(image, depth)
    elif image.mode[0] in "IF":
        mapped, finite = _stretched(_values(image, depth), depth, levels)
        if not finite:
            return mapped, NOT_FINITE
    else:
        mapped = _stretched_colours(image, depth, levels, low_bytes)
    low, high = _extrema(mapped)
    narrow = image.mode != "L" and levels != "minmax" and high - low + 1 < _FEWEST_LEVELS
    return mapped, NARROW if narrow else ""


def _full(image: Image.Image, depth: Depth) -> Image.Image:
    if image.mode not in ("I", "F", "L") and not image.mode.startswith("I;16"):
        return _plain(image)  # of which Pillow has the upper eight bits
    values, low, high = _values(image, depth), depth.least, depth.most
    if high - low > 65535:
        least, most = int(values.min()), int(values.max())
        ranges = (*_STANDARD_RANGES, (low, high))
        low, high = next((a, b) for a, b in ranges if a <= least and most <= b)
    shift = (high - low + 1).bit_length() - 9
    return _by_rows(values, depth, lambda rows: (rows.astype(np.int64) - low) >> shift)


def _stretched(values: _Values, depth: Depth, levels: str) -> tuple[Image.Image, bool]:
    """Maps the range that is asked for; also says whether all levels are finite."""
    finite = True
    if values.dtype.kind == "f":
        finite = bool(np.isfinite(values).all())
    given = level_range(levels)
    if given is None:
        known = values if finite else values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    else:
        low, high = (depth.scale * level + depth.offset for level in given)
    factor = 255 / (high - low) if high > low else 0.0

    def stretch(rows: _Values) -> _Values:
        # Clipped first, so that what is infinite stays out of the products.
        clipped = np.clip(np.nan_to_num(rows.astype(np.float64), nan=low), low, high)
        return np.rint((clipped - low) * factor)

    return _by_rows(values, depth, stretch), finite


def _stretched_colours(
    image: Image.Image, depth: Depth, levels: str, low_bytes: Callable[[], Image.Image | None]
) -> Image.Image:
    below = low_bytes()
    high = np.asarray(_plain(image)).astype(np.uint16)
    # Where Pillow cannot give them, the lower bits are taken to be those that make white 65535.
    low = high if below is None else np.asarray(below)
    return _stretched(high * np.uint16(256) + low, depth, levels)[0]


def low_bytes_of(image: Image.Image) -> Image.Image | None:
    """The lower eight bits of 16-bit colours; None where Pillow cannot be made to give them.

    It unpacks one byte of each two. Told that they lie in the other order, it takes the lower one.

    Args:
        image: opened and not yet loaded; it is loaded here.
    """
    tiles = getattr(image, "tile", [])
    raw_modes = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles}
    if len(raw_modes) != 1:
        return None
    raw_mode = raw_modes.pop()
    if raw_mode == "LA;16B":  # four bytes, of which the second is the lower one of the grey level
        other = "RGBA"
    else:
        kind, _, order = str(raw_mode).partition(";16")
        order = {"little": "L", "big": "B"}[sys.byteorder] if order == "N" else order
        if kind not in ("RGB", "RGBX", "RGBA") or order not in ("L", "B"):
            return None
        other = f"{kind};16{'B' if order == 'L' else 'L'}"
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
        for tile in tiles
    ]
    image.load()
    return image.getchannel("G").convert("RGB") if raw_mode == "LA;16B" else _plain(image)


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("L" if image.mode in ("LA", "La") else "RGB")


def _values(image: Image.Image, depth: Depth) -> _Values:
    values = np.asarray(image)
    if image.mode == "I" and depth.least == 0:
        return values.view(np.uint32)
    return values.view(np.int8) if image.mode == "L" else values


def _by_rows(values: _Values, depth: Depth, function: Callable[[_Values], _Values]) -> Image.Image:
    """Applies a function to some rows at a time, since what it makes is larger than the image."""
    out = np.empty(values.shape, np.uint8)
    step = max(1, _PIXELS_AT_ONCE // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        out[start : start + step] = function(values[start : start + step])
    return Image.fromarray(255 - out if depth.white_is_zero else out)


def _extrema(image: Image.Image) -> tuple[int, int]:
    bands = np.array(image.getextrema(), int).reshape(-1, 2)
    return int(bands[:, 0].min()), int(bands[:, 1].max())
