"""Decoding images that nobody has checked.

A bad file is never replaced by a grey picture: it is skipped and counted (see `accounting.py`).
Decoding runs no code from the file, and the number of pixels is checked before any is read.
"""

from __future__ import annotations

import io
import posixpath
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageOps

from franca_fast.data.levels import level_range
from franca_fast.errors import FrancaError, InputError

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
MAX_IMAGE_PIXELS = 64_000_000

# Only formats whose decoders are part of Pillow; EPS, for one, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange width and height


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image; hidden files are not."""
    base = posixpath.basename(name)
    return base.lower().endswith(IMAGE_EXTENSIONS) and not base.startswith(".")


def is_hidden_image(name: str) -> bool:
    """Whether a file's name says that it is an image and hidden, such as `._a.jpg`."""
    base = posixpath.basename(name)
    return base.startswith(".") and is_image_name(f"x{base}")


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
        levels: how levels of more than 8 bits become 0 to 255, see `franca_fast.data.levels`.

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

    Attributes:
        size: (width, height) as seen upright.
        format: such as "JPEG".

    Raises:
        BadImage: not an image, too many pixels, or a damaged header.
    """

    def __init__(self, data: bytes | Image.Image, settings: DecodeSettings | None = None) -> None:
        self._settings = settings or DecodeSettings()
        if data == b"":
            raise BadImage("empty file")
        self._image: Image.Image
        try:
            if isinstance(data, Image.Image):
                self._image = data
            else:
                self._image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImage("too many pixels", str(error)) from None
        except Image.UnidentifiedImageError:
            raise BadImage("not an image") from None
        except Exception as error:  # each decoder has errors of its own
            raise BadImage("damaged image", str(error)) from None
        self.format = self._image.format or ""
        width, height = self._image.size
        if width * height == 0:
            raise BadImage("no pixels", f"{width} x {height}")
        most = self._settings.max_pixels
        if width * height > most:
            raise BadImage("too many pixels", f"{width} x {height}, at most {most} in all")
        self._orientation = _orientation(self._image)
        self.size = (height, width) if self._orientation >= 5 else (width, height)

    def load(self, least_size: tuple[float, float] | None = None) -> Image.Image:
        """Decodes the pixels.

        Args:
            least_size: (width, height), upright, that would be enough. A JPEG may then be decoded
                at 1/2, 1/4 or 1/8 of its size, but not below this, which is much faster.

        Returns:
            an upright image of mode "RGB", or "L" when the file has grey levels only.

        Raises:
            BadImage: damaged or truncated pixels, or a mode that has no colours.
        """
        image = self._image
        try:
            if least_size is not None and self.format == "JPEG":
                exchanged = self._orientation >= 5
                width, height = least_size[::-1] if exchanged else least_size
                image.draft(None, (max(1, int(width)), max(1, int(height))))
            image.load()
            if self._orientation > 1:
                image = ImageOps.exif_transpose(image)
            return _grey_or_rgb(image)
        except BadImage:
            raise
        except Exception as error:  # each decoder has errors of its own
            raise BadImage("damaged image", str(error)) from None


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


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1..8 as in EXIF; 1 when unknown or already applied."""
    if image.format == "TIFF" or "exif" not in image.info:  # Pillow turns TIFF files itself
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to refuse the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _grey_or_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode with grey levels or colours to "L" or "RGB", 8 bits per channel."""
    mode = image.mode
    if mode in ("RGB", "L"):
        return image
    if mode in ("1", "LA", "La"):
        return image.convert("L")
    if mode == "I" or mode.startswith("I;16"):  # 16 bits; keep the upper eight
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if mode in ("P", "PA"):
        transparent = mode == "PA" or "transparency" in image.info
        return image.convert("RGBA").convert("RGB") if transparent else image.convert("RGB")
    if mode in ("RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("RGB")
    raise BadImage("unsupported mode", mode)
