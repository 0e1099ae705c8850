"""Decoding images that nobody has checked.

A bad file is never replaced by a grey picture: it is skipped and counted (see `accounting.py`).
Decoding runs no code from the file, and the number of pixels is checked before any is read.
"""

from __future__ import annotations

import posixpath
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from franca_fast.data.accounting import BadSample
from franca_fast.data.pixels.formats import (
    IMAGE_EXTENSIONS,
    UnreadFormat,
    extension_of,
    is_read,
    open_image,
    pillow_limit,
)
from franca_fast.data.pixels.free_memory import free_memory
from franca_fast.data.pixels.levels import (
    OTHER_LEVELS,
    depth_of,
    level_range,
    low_bytes_of,
    to_eight_bits,
)
from franca_fast.data.pixels.orientation import is_transposed, orientation_of, upright
from franca_fast.errors import FrancaError, InputError

MAX_IMAGE_PIXELS = 64_000_000

UNREAD_FORMAT = "format that is not read"
TOO_LARGE = "too large for memory"
_MUCH_MEMORY = 1 << 30  # bytes of one image, from which on it is asked whether they are there
_MORE_PIXELS = "--max-image-pixels, or train.max_image_pixels in a configuration, allows more"


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image, read or not; hidden files are not."""
    base = posixpath.basename(name)
    return base.lower().endswith(IMAGE_EXTENSIONS) and not base.startswith(".")


def is_hidden_image(name: str) -> bool:
    """Whether a file's name says that it is an image and hidden, such as `._a.jpg`."""
    base = posixpath.basename(name)
    return base.startswith(".") and is_image_name(f"x{base}")


def is_readable_name(name: str) -> bool:
    """Whether a file's name says that it is an image of a format that is read.

    Example:
        >>> is_image_name("a.nef"), is_readable_name("a.nef"), is_readable_name("a.avif")
        (True, False, True)
    """
    return is_image_name(name) and is_read(extension_of(name))


class BadImage(FrancaError):
    """An image that cannot be used.

    Attributes:
        reason: one of a few short phrases, for counting.
        detail: what else is known.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class DecodeSettings:
    """How an image file becomes pixels.

    Attributes:
        max_pixels: larger images are refused before any pixel is read.
        levels: how levels of more than 8 bits become 0 to 255 (see `pixels/levels.py`).

    Raises:
        InputError: a value outside its range.
    """

    max_pixels: int = MAX_IMAGE_PIXELS
    levels: str = "full"

    def __post_init__(self) -> None:
        if type(self.max_pixels) is not int or self.max_pixels < 1:
            raise InputError(
                f"max_image_pixels: {self.max_pixels!r}; accepted: a whole number from 1 on"
            )
        level_range(self.levels)


class LazyImage:
    """An image whose header has been read and whose pixels have not.

    Args:
        data: the bytes of the file; or an image that Pillow has opened or decoded already.
        settings: which images are refused, and how levels are mapped.
        name: of the file, for formats that their bytes do not tell.

    Attributes:
        size: (width, height) as seen upright.
        format: such as "JPEG".
        remark: what is odd about the pixels, once they are loaded, in a short phrase for counting;
            "" for nothing.

    Raises:
        BadImage: not an image, too many pixels, a format that is not read, a damaged header.
    """

    def __init__(
        self, data: bytes | Image.Image, settings: DecodeSettings | None = None, name: str = ""
    ) -> None:
        self._settings = settings or DecodeSettings()
        self._data = b"" if isinstance(data, Image.Image) else data
        self._name, self.remark = name, ""
        if data == b"":
            raise BadImage("empty file")
        with self._as_bad_image():
            self._image = data if isinstance(data, Image.Image) else open_image(data, name)
            self.format = self._image.format or ""
            self._check_size(*self._image.size)
            self._depth = depth_of(self._image, self._data)
            self._orientation = orientation_of(self._image, self._data)
        if self._depth is not None and self._depth.is_floating and self._settings.levels == "full":
            raise BadImage("unsupported mode", f"floating-point levels; {OTHER_LEVELS}")
        width, height = self._image.size
        self.size = (height, width) if is_transposed(self._orientation) else (width, height)

    def load(self, least_size: tuple[float, float] | None = None) -> Image.Image:
        """Decodes the pixels.

        Args:
            least_size: (width, height), upright, that would be enough. A JPEG may then be decoded
                at 1/2, 1/4 or 1/8 of its size, but not below this, which is much faster.

        Returns:
            an upright image of mode "RGB", or "L" when the file has grey levels only.

        Raises:
            BadImage: damaged or truncated pixels, a mode that has no colours, or an image that is
                too large for the memory.
        """
        image = self._image
        with self._as_bad_image():
            if least_size is not None and self.format == "JPEG":
                exchanged = is_transposed(self._orientation)
                width, height = least_size[::-1] if exchanged else least_size
                image.draft(None, (max(1, int(width)), max(1, int(height))))
            _check_memory(image)
            image.load()
            if self._depth is None:
                image = _grey_or_rgb(image)
            else:
                image, self.remark = to_eight_bits(
                    image, self._depth, self._settings.levels, self._low_bytes
                )
            return upright(image, self._orientation)

    def remarks(self, location: str) -> list[BadSample]:
        """What is to be said of an image that lies there; nothing of most."""
        return [BadSample(location, self.remark, OTHER_LEVELS)] if self.remark else []

    def _low_bytes(self) -> Image.Image | None:
        return low_bytes_of(open_image(self._data, self._name)) if self._data else None

    def _check_size(self, width: int, height: int) -> None:
        most = self._settings.max_pixels
        if width * height == 0:
            raise BadImage("no pixels", f"{width} x {height}")
        if width * height > most:
            size = f"{width} x {height}, at most {most} in all"
            raise BadImage("too many pixels", f"{size}; {_MORE_PIXELS}")

    @contextmanager
    def _as_bad_image(self) -> Iterator[None]:
        """Makes a BadImage of whatever goes wrong with a file."""
        most = self._settings.max_pixels
        try:
            if pillow_limit.allows(most):
                yield
            else:
                with pillow_limit.raised_to(most):
                    yield
        except BadImage:
            raise
        except MemoryError:
            raise BadImage(TOO_LARGE) from None
        except Image.DecompressionBombError as error:
            number = re.search(r"\d+", str(error))
            size = f"{number[0] if number else 'more'} pixels, at most {most}"
            raise BadImage("too many pixels", f"{size}; {_MORE_PIXELS}") from None
        except Image.UnidentifiedImageError:
            raise BadImage("not an image") from None
        except UnreadFormat as error:
            raise BadImage(UNREAD_FORMAT, str(error)) from None
        except Exception as error:  # each decoder has errors of its own
            if "out of memory" in str(error):  # how Pillow reports a decoder's
                raise BadImage(TOO_LARGE) from None
            raise BadImage("damaged image", str(error)) from None


def _check_memory(image: Image.Image) -> None:
    """Refuses pixels that the memory cannot hold: the system would end the process for them."""
    width, height = image.size
    needed = width * height * (1 if image.mode in ("1", "L", "P") else 4)
    if needed < _MUCH_MEMORY:
        return
    free = free_memory()
    if free is not None and needed > free:
        detail = f"{needed / 2**30:.1f} GiB for its pixels, {free / 2**30:.1f} GiB are free"
        raise BadImage(TOO_LARGE, detail)


@contextmanager
def held_in_memory() -> Iterator[None]:
    """Makes a BadImage of a MemoryError: one image that is too large does not end the work."""
    try:
        yield
    except MemoryError:
        raise BadImage(TOO_LARGE) from None


def decode_rgb(
    data: bytes, max_pixels: int = MAX_IMAGE_PIXELS, levels: str = "full"
) -> Image.Image:
    """Decodes an image file into an upright RGB image.

    Args:
        data: the bytes of the file.
        max_pixels: refuse images of more pixels than this, before decoding.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".

    Raises:
        InputError: a limit below 1, or other levels.
        BadImage: it cannot be decoded.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("CMYK", (4, 3)).save(file, "JPEG")
        >>> decode_rgb(file.getvalue()).mode
        'RGB'
    """
    with without_remarks():
        image = LazyImage(data, DecodeSettings(max_pixels, levels)).load()
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def without_remarks() -> Iterator[None]:
    """Silences Pillow's warnings about odd files; what matters becomes a `BadImage`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode with grey levels or colours to "L" or "RGB", 8 bits per channel."""
    mode = image.mode
    if mode in ("RGB", "L"):
        return image
    if mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode in ("P", "PA"):
        transparent = mode == "PA" or "transparency" in image.info
        return image.convert("RGBA").convert("RGB") if transparent else image.convert("RGB")
    if mode in ("RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("RGB")
    raise BadImage("unsupported mode", mode)
