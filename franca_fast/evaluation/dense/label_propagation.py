"""Labels carried from frame to frame by the similarity of patches (Jabri et al. 2020, DINO)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from franca_fast.errors import InputError

_COSINES_AT_ONCE = 2**22  # targets x sources held in memory, 16 MiB of float32


def neighbourhood(targets: range, sources: range, width: int, radius: int | None) -> Tensor:
    """Which positions of a grid a target position may take its label from.

    These are the squares of 2 radius + 1 positions a side around each target, cut at the border.

    Args:
        targets: rows of the grid.
        sources: rows of the grid.
        width: positions in a row.
        radius: in positions; None lets every position see every other.

    Returns:
        bool [targets x width, sources x width].

    Example:
        >>> neighbourhood(range(1), range(1), 3, 1).int()
        tensor([[1, 1, 0],
                [1, 1, 1],
                [0, 1, 1]], dtype=torch.int32)
    """
    if radius is None:
        return torch.ones(len(targets) * width, len(sources) * width, dtype=torch.bool)
    rows = (_column(targets) - _column(sources).T).abs() <= radius
    columns = (_column(range(width)) - _column(range(width)).T).abs() <= radius
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)


def propagate_labels(
    target: Tensor,
    sources: Tensor,
    labels: Tensor,
    *,
    radius: int | None = 12,
    top_k: int = 5,
    temperature: float = 0.1,
    cosines_at_once: int = _COSINES_AT_ONCE,
) -> Tensor:
    """Soft labels of a frame from those of other frames.

    A position takes the mean of the labels of its `top_k` most similar positions, of all source
    frames together and within its neighbourhood, weighted by exp(cosine / temperature). Positions
    that are exactly as similar as the last of them count too. A block of the target's rows is
    computed at a time, against the rows that it can see.

    Args:
        target: [h, w, d], patch features, each of length 1.
        sources: [n, h, w, d], those of the source frames.
        labels: [n, C, h, w], their soft labels.
        radius: see `neighbourhood`.
        top_k: positions to take from.
        temperature: of the weights.
        cosines_at_once: similarities held in memory; a row of the target is the least.

    Returns:
        float32 [C, h, w] on the device of the features.

    Raises:
        InputError: shapes that do not fit.

    Example:
        >>> frame = F.normalize(torch.eye(4).reshape(2, 2, 4), dim=-1)
        >>> label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
        >>> propagate_labels(frame, frame[None], label, top_k=1)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    height, width, _ = target.shape
    n, n_labels = labels.shape[:2]
    if sources.shape != (n, *target.shape) or labels.shape[2:] != (height, width):
        raise InputError(
            f"sources: {tuple(sources.shape)} with labels {tuple(labels.shape)}; accepted: "
            f"[n, {', '.join(map(str, target.shape))}] and [n, labels, {height}, {width}]"
        )
    reach = height if radius is None else radius
    seen = width * n * min(height, 2 * reach + 1) * width  # of one row
    rows_at_once = max(1, cosines_at_once // seen)
    parts = []
    for first in range(0, height, rows_at_once):
        rows = range(first, min(height, first + rows_at_once))
        near = range(max(0, rows.start - reach), min(height, rows.stop + reach))
        allowed = neighbourhood(rows, near, width, radius).to(target.device)
        there = slice(near.start, near.stop)
        cosines = torch.einsum(
            "td,nsd->tns",
            target[rows.start : rows.stop].flatten(0, 1),
            sources[:, there].flatten(1, 2),
        )
        cosines = cosines.masked_fill(~allowed[:, None], -torch.inf).flatten(1)
        nearest = cosines.topk(min(top_k, cosines.shape[1]), dim=1).values
        weights = ((cosines - nearest[:, :1]) / temperature).exp()
        weights = weights.masked_fill(cosines < nearest[:, -1:], 0)
        known = labels[:, :, there].flatten(2).transpose(1, 2).reshape(-1, n_labels)
        parts.append((weights @ known.to(weights)) / weights.sum(1, keepdim=True))
    return torch.cat(parts).T.reshape(n_labels, height, width)


def label_map(soft: Tensor, patch_size: int) -> Tensor:
    """The label of each pixel from soft labels of patches.

    They are interpolated bilinearly to pixels; each label is stretched to the range of 0 to 1 over
    the frame, so that small objects hold their own; and the largest wins, the first of equals.

    Args:
        soft: [C, h, w].
        patch_size: pixels a patch has along a side.

    Returns:
        int64 [h x patch, w x patch].

    Example:
        >>> label_map(torch.tensor([[[0.9, 0.6]], [[0.0, 0.2]]]), 1)
        tensor([[0, 1]])
    """
    size = (soft.shape[1] * patch_size, soft.shape[2] * patch_size)
    fine = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0]
    lowest, highest = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
    # A label that is nowhere stays 0, and one that is the same everywhere becomes 0.
    span = (highest - lowest).masked_fill(highest == lowest, 1)
    return torch.where(highest > 0, (fine - lowest) / span, fine).argmax(0)


def _column(values: range) -> Tensor:
    return torch.arange(values.start, values.stop)[:, None]
