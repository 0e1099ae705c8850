"""Decoding images that nobody has checked, and counting those that cannot be used.

A bad file is never replaced by a grey picture: it is skipped, counted by reason and named in the
log. Decoding runs no code from the file, and the number of pixels is checked before any is read.
"""

from __future__ import annotations

import io
import logging
import posixpath
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageOps

from franca_fast.errors import FrancaError, InputError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
MAX_IMAGE_PIXELS = 64_000_000

# Only formats whose decoders are part of Pillow; EPS, for one, would start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MOST_NAMED = 10_000
_RECENT_SAMPLES = 10_000  # the rate of bad samples is taken over about this many
_FEWEST_SAMPLES = 1_000  # so that a few bad ones at the beginning stop nothing
_named: set[int] = set()  # hashes of what the log has named
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 exchange width and height


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image; hidden files are not."""
    base = posixpath.basename(name)
    return base.lower().endswith(IMAGE_EXTENSIONS) and not base.startswith(".")


class BadImage(FrancaError):
    """An image that cannot be used.

    Attributes:
        reason: one of a few short phrases, for counting.
        detail: what else is known.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


class LazyImage:
    """An image whose header has been read and whose pixels have not.

    Args:
        data: the bytes of the file; or an image that Pillow has opened or decoded already.
        max_pixels: refuse images of more pixels than this.

    Attributes:
        size: (width, height) as seen upright.
        format: such as "JPEG".

    Raises:
        BadImage: not an image, too many pixels, or a damaged header.
    """

    def __init__(self, data: bytes | Image.Image, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
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
        if width * height > max_pixels:
            raise BadImage("too many pixels", f"{width} x {height}, at most {max_pixels} in all")
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


def decode_rgb(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decodes an image file into an upright RGB image.

    Args:
        data: the bytes of the file.
        max_pixels: refuse images of more pixels than this, before decoding.

    Raises:
        BadImage: it cannot be decoded.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("CMYK", (4, 3)).save(file, "JPEG")
        >>> decode_rgb(file.getvalue()).mode
        'RGB'
    """
    with without_remarks():
        image = LazyImage(data, max_pixels).load()
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class BadSample:
    """A sample (or a shard) that could not be used.

    Attributes:
        location: where it lies.
        reason: one of a few short phrases.
        detail: what else is known.
        count: images that are lost with it, as far as is known; 1 for a shard of unknown contents.
        of: images that there were, the lost ones included.
    """

    location: str
    reason: str
    detail: str = ""
    count: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"'{self.location}' ({self.reason})"


class SkipCounter(Counter[str]):
    """Counts what was skipped, by reason, and names it in the log.

    It is counted each time it is met, and named once in the life of the process: in the next epoch
    or evaluation the same line would say nothing new.

    Example:
        >>> skipped = SkipCounter()
        >>> skipped.add(BadSample("a.jpg", "damaged image"))
        >>> dict(skipped), skipped.summary()
        ({'damaged image': 1}, '1 skipped: 1 damaged image')
    """

    def add(self, bad: BadSample) -> None:
        """Counts one and names it in the log."""
        self[bad.reason] += bad.count
        name = hash(bad)
        if name in _named or len(_named) > _MOST_NAMED:
            return
        _named.add(name)
        detail = f" ({bad.detail})" if bad.detail else ""
        logger.warning("skipped %s: %s%s", bad.location, bad.reason, detail)
        if len(_named) > _MOST_NAMED:
            logger.warning("more than %d skipped; further ones are only counted", _MOST_NAMED)

    def summary(self) -> str:
        """One line such as "3 skipped: 2 damaged image, 1 not an image"; empty when none was."""
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.most_common())
        return f"{self.total()} skipped: {reasons}" if reasons else ""


class BadRate:
    """Ends the work when too many of the last samples could not be used.

    Args:
        most: the largest share that is borne, over about 10,000 samples and at least 1,000.

    Raises:
        InputError: a share outside 0..1.
    """

    def __init__(self, most: float) -> None:
        if not 0 <= most <= 1:
            raise InputError(f"max_bad_fraction: {most}; accepted: from 0 to 1")
        self.most = most
        self._recent: deque[tuple[int, int]] = deque()  # (samples, bad ones)

    def add(self, samples: int, bad: Sequence[BadSample], *, enough: bool = True) -> None:
        """Counts some more samples.

        Args:
            samples: how many, bad ones included.
            bad: which of them could not be used.
            enough: whether something stood in for each of these.

        Raises:
            InputError: too many were bad, or nothing stood in for them.
        """
        self._recent.append((samples, len(bad)))
        while sum(n for n, _ in self._recent) - self._recent[0][0] >= _RECENT_SAMPLES:
            self._recent.popleft()
        total, n_bad = (sum(column) for column in zip(*self._recent, strict=True))
        if bad and (n_bad > self.most * max(total, _FEWEST_SAMPLES) or not enough):
            raise InputError(
                f"{n_bad} of the last {total} samples cannot be used, more than "
                f"{self.most:.0%}; the last is {bad[-1]}"
            )


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
