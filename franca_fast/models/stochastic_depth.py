"""Stochastic depth (arXiv 1603.09382) by subsets: a branch sees some of a batch's images only.

The images are packed, [tokens, d], one crop size after the other. As the images of a subset are all
different, nothing here adds up in the same place, forward or backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Crops = Sequence[tuple[int, int]]  # (images, tokens of each) of each crop size


class Subset(NamedTuple):
    """Some images of each crop size.

    Attributes:
        crops: of all images.
        kept_crops: of the subset.
        kept: for each crop size, the images in the subset, int64.
    """

    crops: Crops
    kept_crops: Crops
    kept: tuple[Tensor, ...]


# Of the two branches of a block; None is every image.
Subsets = tuple[Subset | None, Subset | None]


def draw_subsets(crops: Crops, rates: Sequence[float], device: torch.device) -> list[Subsets]:
    """Draws max(1, images * (1 - rate)) images of each crop size for both branches of each block.

    The numbers are drawn on the host, where they cost less than on a GPU, and go to the device in
    one copy that the host does not wait for.

    Args:
        crops: (images, tokens of each) of each crop size.
        rates: of each block; 0 keeps every image.
        device: where the blocks are.
    """
    sizes = [[max(1, int(images * (1.0 - rate))) for images, _ in crops] for rate in rates]
    drawn = [
        torch.randperm(images, device="cpu")[:n_kept]
        for rate, of_block in zip(rates, sizes, strict=True)
        for _ in range(2 if rate > 0.0 else 0)
        for (images, _), n_kept in zip(crops, of_block, strict=True)
    ]
    if not drawn:
        return [(None, None)] * len(rates)
    numbers = torch.cat(drawn)
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    parts = iter(numbers.to(device, non_blocking=True).split([len(part) for part in drawn]))

    def subset(of_block: list[int]) -> Subset:
        kept_crops = [(n_kept, tokens) for n_kept, (_, tokens) in zip(of_block, crops, strict=True)]
        return Subset(crops, kept_crops, tuple(next(parts) for _ in crops))

    return [
        (subset(of_block), subset(of_block)) if rate > 0.0 else (None, None)
        for rate, of_block in zip(rates, sizes, strict=True)
    ]


def seqlens_of(crops: Crops) -> list[int]:
    """Tokens of each image."""
    return [tokens for images, tokens in crops for _ in range(images)]


def take_images(x: Tensor, subset: Subset) -> Tensor:
    """The tokens of a subset, [kept tokens, d], of the tokens [tokens, d] of all images."""
    taken: Tensor = _Take.apply(x, subset)
    return taken


def add_to_images(x: Tensor, taken: Tensor, residual: Tensor, subset: Subset) -> Tensor:
    """Adds images / kept images times the residual to the images of a subset.

    Args:
        x: all tokens, [tokens, d]; not changed.
        taken: `take_images` of x.
        residual: [kept tokens, d].
        subset: the images.
    """
    total: Tensor = _Add.apply(x, taken, residual, subset)
    return total


def rows_of_images(subset: Subset, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where some tokens are found in a subset.

    Args:
        subset: the images.
        rows: among the tokens of all images, int64 [n].
        dtype: of the factors.

    Returns:
        the rows among the tokens of the subset, int64 [n], and the factors of their residuals,
        [n, 1]: images / kept images, or 0 for a token whose image is left out, for which the first
        row stands. How many these are the host need not know.
    """
    places = rows.new_zeros(_n_tokens(subset.crops), 1)
    factors = places.to(dtype)
    n_kept = _n_tokens(subset.kept_crops)
    for place, factor, kept, number, images_by_kept in zip(
        _by_image(places, subset.crops),
        _by_image(factors, subset.crops),
        subset.kept,
        _by_image(torch.arange(n_kept, device=rows.device), subset.kept_crops),
        _factors(subset),
        strict=True,
    ):
        place.index_copy_(0, kept, number)
        factor.index_fill_(0, kept, images_by_kept)
    return places.index_select(0, rows).squeeze(1), factors.index_select(0, rows)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, subset: Subset) -> Tensor:
        ctx.subset, ctx.n_tokens = subset, x.shape[0]
        taken = x.new_empty(_n_tokens(subset.kept_crops), x.shape[1])
        targets = _by_image(taken, subset.kept_crops)
        for own, kept, target in zip(_by_image(x, subset.crops), subset.kept, targets, strict=True):
            torch.index_select(own, 0, kept, out=target)
        return taken

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        subset = ctx.subset
        total = gradient.new_zeros(ctx.n_tokens, gradient.shape[1])
        parts = _by_image(gradient, subset.kept_crops)
        for target, kept, part in zip(
            _by_image(total, subset.crops), subset.kept, parts, strict=True
        ):
            target.index_copy_(0, kept, part)
        return total, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, taken: Tensor, residual: Tensor, subset: Subset) -> Tensor:
        ctx.subset, ctx.dtype = subset, residual.dtype
        total, changed = x.clone(), torch.empty_like(taken)
        for target, kept, own, change, new, factor in zip(
            _by_image(total, subset.crops),
            subset.kept,
            _by_image(taken, subset.kept_crops),
            _by_image(residual, subset.kept_crops),
            _by_image(changed, subset.kept_crops),
            _factors(subset),
            strict=True,
        ):
            torch.add(own, change, alpha=factor, out=new)
            target.index_copy_(0, kept, new)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        subset = ctx.subset
        shape = (_n_tokens(subset.kept_crops), gradient.shape[1])
        of_residual = gradient.new_empty(shape, dtype=ctx.dtype)
        for part, kept, target, factor in zip(
            _by_image(gradient, subset.crops),
            subset.kept,
            _by_image(of_residual, subset.kept_crops),
            _factors(subset),
            strict=True,
        ):
            torch.mul(part.index_select(0, kept), factor, out=target)
        # What was taken is part of x, whose gradient this is as well.
        return gradient, None, of_residual, None


def _factors(subset: Subset) -> list[float]:
    crops = zip(subset.crops, subset.kept_crops, strict=True)
    return [images / n_kept for (images, _), (n_kept, _) in crops]


def _n_tokens(crops: Crops) -> int:
    return sum(images * tokens for images, tokens in crops)


def _by_image(packed: Tensor, crops: Crops) -> Iterator[Tensor]:
    """Views [images, tokens * d] of the crop sizes."""
    parts = packed.split([images * tokens for images, tokens in crops])
    return (part.reshape(images, -1) for part, (images, _) in zip(parts, crops, strict=True))
