"""Patch tokens of a set of images: kept in memory when they fit, else computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder, inference, patch_token_grid
from franca_fast.rasa.image_crops import ImageCrops

_FLOAT32 = 4  # bytes


class PatchFeatures(Protocol):
    """Patch tokens of numbered images.

    Attributes:
        n_images: how many numbers there are.
        grid: rows and columns of patches.
        width: d.
    """

    n_images: int
    grid: tuple[int, int]
    width: int

    @property
    def n_readable(self) -> int:
        """Images that are not known to be unreadable."""
        ...

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[Tensor]:
        """Yields float32 [b, rows * columns, d] of the images asked for, b up to `size`."""
        ...


class CachedFeatures:
    """Tokens that are held in memory.

    Args:
        tokens: float32 [n, rows, columns, d].
        numbers: of the images that these are, among `n_images`; None when all were readable.
        n_images: how many numbers there are.
        device: where batches are wanted; None leaves them.

    Raises:
        InputError: another shape, or values that are not finite.

    Example:
        >>> features = CachedFeatures(torch.randn(6, 2, 3, 8))
        >>> [batch.shape[0] for batch in features.batches([5, 0, 3], 2)]
        [2, 1]
    """

    def __init__(
        self,
        tokens: Tensor,
        numbers: Sequence[int] | None = None,
        n_images: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        if tokens.dim() != 4:
            raise InputError(f"tokens: {tuple(tokens.shape)}; accepted: [n, rows, columns, d]")
        self._tokens = tokens.flatten(1, 2)
        for part in self._tokens.split(256):
            check_finite(part)
        self.n_images = len(tokens) if n_images is None else n_images
        self._place = torch.full((self.n_images,), -1)
        self._place[list(range(len(tokens)) if numbers is None else numbers)] = torch.arange(
            len(tokens)
        )
        self.grid = (tokens.shape[1], tokens.shape[2])
        self.width = tokens.shape[3]
        self._device = device or tokens.device

    @property
    def n_readable(self) -> int:
        """Images that have tokens."""
        return len(self._tokens)

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[Tensor]:
        """See `PatchFeatures`."""
        for part in torch.as_tensor(numbers).split(size):
            places = self._place[part]
            places = places[places >= 0]
            if len(places):
                yield self._tokens[places].to(self._device)


class StreamedFeatures:
    """Tokens that the encoder computes again whenever they are asked for.

    Args:
        encoder: with patch tokens.
        crops: the images.
        grid: rows and columns of patches.
        width: d.
        encode_batch: images that the encoder sees at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        crops: ImageCrops,
        grid: tuple[int, int],
        width: int,
        encode_batch: int,
    ) -> None:
        self._encoder, self._crops, self._encode_batch = encoder, crops, encode_batch
        self.n_images, self.grid, self.width = len(crops), grid, width

    @property
    def n_readable(self) -> int:
        """Images that have not turned out to be unreadable so far."""
        return self.n_images - self._crops.n_unreadable

    def batches(self, numbers: Sequence[int], size: int) -> Iterator[Tensor]:
        """See `PatchFeatures`."""
        for _, images in self._crops.batches(numbers, size):
            parts = [tokens_of(self._encoder, part) for part in images.split(self._encode_batch)]
            yield torch.cat(parts).flatten(1, 2)


def open_features(
    encoder: Encoder,
    crops: ImageCrops,
    *,
    cache_gb: float,
    encode_batch: int,
    progress: bool = False,
) -> PatchFeatures:
    """Computes the tokens of all crops once, if they fit into memory; else every time.

    Args:
        encoder: with patch tokens.
        crops: the images.
        cache_gb: memory for tokens, in 10^9 bytes; images * patches * d * 4 bytes are needed.
        encode_batch: images that the encoder sees at once.
        progress: whether to show a bar on a terminal.

    Raises:
        InputError: no readable image, no patch tokens, or tokens that are not finite.
    """
    first = next(
        (tokens_of(encoder, part) for _, part in crops.batches(range(len(crops)), 1)), None
    )
    if first is None:
        raise InputError(f"images: none is readable: {crops.account.skipped.summary() or 'empty'}")
    _, rows, columns, width = first.shape
    if len(crops) * first.numel() * _FLOAT32 > cache_gb * 1e9:
        return StreamedFeatures(encoder, crops, (rows, columns), width, encode_batch)
    tokens = torch.empty(len(crops), rows, columns, width)
    numbers: list[int] = []
    with tqdm(total=len(crops), unit=" images", disable=None if progress else True) as bar:
        for part, images in crops.batches(range(len(crops)), encode_batch):
            tokens[len(numbers) : len(numbers) + len(part)] = tokens_of(encoder, images).cpu()
            numbers += part
            bar.update(len(part))
    return CachedFeatures(tokens[: len(numbers)], numbers, len(crops), first.device)


def tokens_of(encoder: Encoder, images: Tensor) -> Tensor:
    """Patch tokens of a batch, float32 [b, rows, columns, d] on the encoder's device.

    Raises:
        InputError: no patch tokens, or values that are not finite.
    """
    with inference(encoder) as device:
        tokens = patch_token_grid(encoder, images.to(device))
    check_finite(tokens)
    return tokens


def check_finite(tokens: Tensor) -> None:
    """Refuses tokens with infinities or NaN.

    Raises:
        InputError: there are some.
    """
    if not bool(torch.isfinite(tokens).all()):
        raise InputError("tokens: not all finite; accepted: finite ones, to read positions from")
