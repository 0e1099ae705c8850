"""Cross entropy of upsampled logits and its gradient, without holding the upsampled logits.

Bilinear upsampling is a product with one matrix for the rows and one for the columns, and the
gradient goes back through their transposes. Between the two some rows of pixels at a time are
enough: softmax(logits) - onehot needs no graph, and stays in the processor's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.evaluation.dense.probe.crops import NOT_COUNTED
from franca_fast.evaluation.dense.probe.sliding_window import neighbours

_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}  # upsampled logits in memory


class UpsampledLoss:
    """The loss of logits on a grid for targets on a finer one.

    Args:
        grid: h, w of the logits.
        pixels: H, W of the targets.
        like: a tensor of the logits' dtype and device.

    Example:
        >>> logits, target = torch.zeros(2, 1, 1), torch.tensor([[0, NOT_COUNTED]])
        >>> loss, gradient = UpsampledLoss((1, 1), (1, 2), logits)(logits, target)
        >>> round(loss.item(), 4), gradient.flatten().tolist()
        (0.6931, [-0.5, 0.5])
    """

    def __init__(self, grid: tuple[int, int], pixels: tuple[int, int], like: Tensor) -> None:
        self._rows, self._columns = (
            _bilinear(*sides).to(like) for sides in zip(grid, pixels, strict=True)
        )
        # The first and the last row of logits that each row of pixels lies between.
        first, last, _ = neighbours(grid[0], pixels[0])
        self._first, self._last = first.tolist(), last.tolist()

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient.

        Args:
            logits: [C, h, w].
            target: int64 [H, W], `NOT_COUNTED` where a pixel is in no loss.

        Returns:
            the sum over the pixels that count of the cross entropy of the logits, upsampled
            bilinearly (align_corners=False); and its gradient [C, h, w].
        """
        wide = logits @ self._columns.T  # [C, h, W]
        gradient, loss = torch.zeros_like(wide), wide.new_zeros(())
        at_once = _AT_ONCE.get(wide.device.type, _AT_ONCE["cuda"])
        step = max(1, at_once // (wide.shape[0] * wide.shape[2]))
        for start in range(0, len(target), step):
            stop = min(start + step, len(target))
            reached = slice(self._first[start], self._last[stop - 1] + 1)
            rows, some = self._rows[start:stop, reached], target[start:stop]
            log_p = (rows @ wide[:, reached]).log_softmax(0)  # [C, rows, W]
            counted, own = some != NOT_COUNTED, some.clamp(min=0)[None]
            loss -= (log_p.gather(0, own)[0] * counted).sum()
            difference = log_p.exp_()
            difference.scatter_add_(0, own, difference.new_full((), -1.0).expand(own.shape))
            gradient[:, reached] += rows.T @ difference.mul_(counted)
        return loss, gradient @ self._columns


def _bilinear(length: int, pixels: int) -> Tensor:
    """The matrix that upsamples one side, float64 [pixels, length]."""
    first, second, near = neighbours(length, pixels)
    matrix = torch.zeros(pixels, length, dtype=torch.float64)
    matrix.scatter_add_(1, first[:, None], 1 - near[:, None])
    return matrix.scatter_add_(1, second[:, None], near[:, None])
