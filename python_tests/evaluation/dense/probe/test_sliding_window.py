from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from franca_fast.evaluation.dense.probe import sliding_window
from franca_fast.evaluation.dense.probe.sliding_window import upsampled_argmax, windows_over

# Larger than a window and smaller, also along one side alone, and of no multiple of anything.
SHAPES = [(12, 12), (31, 17), (12, 40), (5, 30), (7, 9), (1, 1)]
SIZE, STRIDES = 12, (5, 6, 12)


def bilinear(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """[C, h, w] at other pixels, in float64 and one pixel after the other."""
    _, height, width = logits.shape
    result = torch.zeros(len(logits), *shape, dtype=torch.float64)
    for i in range(shape[0]):
        for j in range(shape[1]):
            y = min(max((i + 0.5) * height / shape[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / shape[1] - 0.5, 0), width - 1)
            for r, u in ((int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)):
                for c, v in ((int(x), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)):
                    result[:, i, j] += u * v * logits[:, r, c].double()
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", STRIDES)
def test_the_average_is_that_of_a_plain_loop(shape: tuple[int, int], stride: int) -> None:
    windows = windows_over(shape, SIZE, stride)
    logits = [torch.randn(2, 3, 3) for _ in windows.places]
    total = torch.zeros(2, *shape, dtype=torch.float64)
    count = torch.zeros(shape, dtype=torch.float64)
    for (row, column), one in zip(windows.places, logits, strict=True):
        pixels = bilinear(one, (SIZE, SIZE))
        for i in range(row, min(row + SIZE, shape[0])):
            for j in range(column, min(column + SIZE, shape[1])):
                total[:, i, j] += pixels[:, i - row, j - column]
                count[i, j] += 1
    assert (count > 0).all()
    torch.testing.assert_close(
        windows.averaged(logits).double(), total / count, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_are_the_images_pixels_and_zeros_beyond(shape: tuple[int, int]) -> None:
    windows, image = windows_over(shape, SIZE, 5), torch.randn(3, *shape)
    cut = windows.cut(image)
    assert cut.shape == (len(windows.places), 3, SIZE, SIZE)
    for (row, column), one in zip(windows.places, cut, strict=True):
        expected = torch.zeros(3, SIZE, SIZE)
        part = image[:, row : row + SIZE, column : column + SIZE]
        expected[:, : part.shape[1], : part.shape[2]] = part
        assert torch.equal(one, expected)


def test_windows_begin_at_every_stride_and_end_with_the_image() -> None:
    assert windows_over((518, 690), 518, 259)[:2] == ([0], [0, 172])
    assert windows_over((1036, 1100), 518, 259)[:2] == ([0, 259, 518], [0, 259, 518, 582])


@pytest.mark.parametrize("shape", [(1, 1), (13, 29), (40, 17), (6, 7)])
def test_classes_are_those_of_upsampled_logits(shape: tuple[int, int]) -> None:
    logits = torch.randn(5, 6, 7, dtype=torch.float64)
    upsampled = F.interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(upsampled, bilinear(logits, shape))  # what the loop is worth
    assert torch.equal(upsampled_argmax(logits, shape), upsampled.argmax(0))


def test_rows_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 9, 8)
    whole = upsampled_argmax(logits, (33, 21))
    monkeypatch.setattr(sliding_window, "_AT_ONCE", 4 * 21 * 2)
    assert torch.equal(upsampled_argmax(logits, (33, 21)), whole)
