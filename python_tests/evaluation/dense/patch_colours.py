"""An encoder whose features can be computed by hand, for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchColours(nn.Module):
    """The mean colour of each patch, turned into `width` features by a fixed matrix.

    Attributes:
        seen: images that it was given.
        largest: images that it was given at once.
    """

    def __init__(self, patch_size: int = 7, width: int = 6) -> None:
        super().__init__()
        self.patch_size, self.seen, self.largest = patch_size, 0, 0
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("matrix", torch.randn(3, width, generator=generator))

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += len(images)
        self.largest = max(self.largest, len(images))
        colours = F.avg_pool2d(images, self.patch_size).flatten(2).transpose(1, 2)
        tokens = colours @ self.matrix
        return {"x_norm_clstoken": tokens.mean(1), "x_norm_patchtokens": tokens}
