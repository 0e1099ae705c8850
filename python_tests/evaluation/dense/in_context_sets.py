"""Images whose patch features are known, for the tests of in-context segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.data.settings import CropSettings


class KnownImages(SegmentedImages):
    """Grey images, each of one level of its own, by which `KnownEncoder` knows them.

    Args:
        masks: of the images, int64 [H, W] each.
        first: the level of the first image.
        n_classes: how many.
        ignore: see `SegmentedImages`.
        order: in which the images come; names stay with their images.
    """

    def __init__(
        self,
        masks: Sequence[NDArray[np.int64]],
        first: int,
        n_classes: int,
        ignore: int | None = 255,
        order: Sequence[int] | None = None,
    ) -> None:
        self._order = list(range(len(masks))) if order is None else list(order)
        self._masks, self._first = masks, first
        self.names = [f"image {i:03d}" for i in self._order]
        self.class_names = [f"class {c}" for c in range(n_classes)]
        self.ignore = ignore

    def __repr__(self) -> str:
        return f"{len(self)} known images from {self._first} on"

    def load(self, i: int) -> tuple[Image.Image, NDArray[np.int64]]:
        mask = self._masks[self._order[i]]
        level = self._first + self._order[i]
        return Image.new("RGB", mask.shape[::-1], (level,) * 3), mask.copy()

    def fingerprint(self) -> str:
        masks = hashlib.sha256(b"".join(mask.tobytes() for mask in self._masks)).hexdigest()
        return f"{type(self).__name__} {self._first} {self._order} {masks}"


class KnownEncoder(nn.Module):
    """Gives the patch features of the image whose level it sees.

    Args:
        features: float32 [images, patches, d].
        patch_size: pixels.
    """

    def __init__(self, features: Tensor, patch_size: int) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.patch_size = patch_size
        self.images_seen = 0

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = CropSettings.mean[0], CropSettings.std[0]
        levels = (255 * (images[:, 0, 0, 0] * std + mean)).round().long()
        self.images_seen += len(images)
        return {"x_norm_patchtokens": self.features[levels.clamp(0, len(self.features) - 1)]}


class MeanColours(nn.Module):
    """Features that do not depend on the other images of a batch, to the last bit: mean colours."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.register_buffer("mix", torch.randn(3, 12, generator=torch.Generator().manual_seed(3)))
        self.patch_size = patch_size

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        tokens = []
        for image in images:
            cells = torch.nn.functional.avg_pool2d(image[None], self.patch_size)[0]
            colours = cells.flatten(1).T.double()
            tokens.append(sum(colours[:, i : i + 1] * self.mix[i].double() for i in range(3)))
        return {"x_norm_patchtokens": torch.stack(tokens).float()}
