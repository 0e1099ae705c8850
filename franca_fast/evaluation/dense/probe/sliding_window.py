"""Dense predictions of images larger than the network's crop, from overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**26  # upsampled logits held in memory, 256 MiB of float32


class Windows(NamedTuple):
    """Square windows that cover an image.

    Attributes:
        rows, columns: where they begin; there is a window for each pair, row by row.
        size: their side, pixels.
        shape: height and width of the image.

    Example:
        >>> windows = windows_over((50, 30), size=40, stride=20)
        >>> windows.rows, windows.columns, len(windows.places)
        ([0, 10], [0], 2)
    """

    rows: list[int]
    columns: list[int]
    size: int
    shape: tuple[int, int]

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column where each window begins."""
        return [(row, column) for row in self.rows for column in self.columns]

    def cut(self, image: Tensor) -> Tensor:
        """The windows of an image [C, H, W], zeros where it ends before: [n, C, size, size]."""
        height, width = (max(self.size, side) for side in self.shape)
        padded = F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
        size = self.size
        return torch.stack([padded[:, r : r + size, c : c + size] for r, c in self.places])

    def averaged(self, logits: Sequence[Tensor] | Tensor) -> Tensor:
        """Logits of the image: those of the windows, averaged where they overlap.

        Args:
            logits: [C, h, w] for each window, upsampled bilinearly to its pixels.

        Returns:
            [C, H, W].
        """
        height, width = (max(self.size, side) for side in self.shape)
        total = logits[0].new_zeros(logits[0].shape[0], height, width)
        for (row, column), one in zip(self.places, logits, strict=True):
            total[:, row : row + self.size, column : column + self.size] += F.interpolate(
                one[None], (self.size, self.size), mode="bilinear", align_corners=False
            )[0]
        counts = [
            sum(
                (torch.arange(length) >= start) & (torch.arange(length) < start + self.size)
                for start in starts
            )
            for starts, length in ((self.rows, height), (self.columns, width))
        ]
        total /= torch.outer(*(torch.as_tensor(one).to(total) for one in counts))
        return total[:, : self.shape[0], : self.shape[1]]


def windows_over(shape: tuple[int, int], size: int, stride: int) -> Windows:
    """The windows of an image: every `stride` pixels, and the last ones at its end.

    An image smaller than a window has one, which reaches beyond it.

    Args:
        shape: height and width, pixels.
        size: side of a window.
        stride: at most `size`, so that every pixel is in a window.
    """

    def starts(length: int) -> list[int]:
        last = max(0, length - size)
        return [*range(0, last, stride), last]

    return Windows(starts(shape[0]), starts(shape[1]), size, shape)


def upsampled_argmax(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The class of the highest logit of each pixel, where logits are upsampled bilinearly.

    Of large images only some rows are in memory at once.

    Args:
        logits: [C, h, w].
        shape: height and width of the result.

    Returns:
        int64 [H, W].

    Example:
        >>> upsampled_argmax(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), (1, 4)).tolist()
        [[0, 0, 1, 1]]
    """
    sides = [neighbours(*one) for one in zip(logits.shape[1:], shape, strict=True)]
    (above, below, down), (left, right, across) = (
        (first.to(logits.device), second.to(logits.device), near.to(logits))
        for first, second, near in sides
    )
    rows = max(1, _AT_ONCE // (logits.shape[0] * max(shape[1], logits.shape[2])))
    parts = []
    for first in range(0, shape[0], rows):
        some = slice(first, first + rows)
        strip = torch.lerp(logits[:, above[some]], logits[:, below[some]], down[some, None])
        parts.append(torch.lerp(strip[..., left], strip[..., right], across).argmax(0))
    return torch.cat(parts)


def neighbours(length: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each pixel of a resized side is made of, bilinearly and without aligned corners.

    Returns:
        the two values that it lies between, int64 [pixels] each; and how near it is to the second,
        float64 from 0 to 1.

    Example:
        >>> first, second, near = neighbours(2, 4)
        >>> first.tolist(), second.tolist(), near.tolist()
        ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.0])
    """
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (length / pixels) - 0.5
    centres = centres.clamp(0, length - 1)
    first = centres.floor().long()
    return first, (first + 1).clamp(max=length - 1), centres - first
