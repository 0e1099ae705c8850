"""Images with boxes of objects: of VOC's annotations, or around the masks of any data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from franca_fast.data.segmentation import open_segmentation
from franca_fast.data.segmented_images import Mask, SegmentedImages
from franca_fast.data.voc_boxes import VOC_BOXES, Boxes, VocBoxes, voc_root
from franca_fast.evaluation.extras import need

_BACKGROUND = "background"


class MaskBoxes:
    """Images with masks, and the boxes around their objects.

    An object is a 4-connected part of one class that is not the background. The background is the
    class of that name; without one, the class whose pixels are ignored, as 0 of ADE20K; else 0.

    Args:
        images: with masks.

    Attributes:
        names: of the images.
    """

    def __init__(self, images: SegmentedImages) -> None:
        self._images, self.names = images, images.names
        names = [name.lower() for name in images.class_names]
        self._background = 0
        if _BACKGROUND in names:
            self._background = names.index(_BACKGROUND)
        elif images.ignore is not None and images.ignore < images.n_classes:
            self._background = images.ignore
        self._digest = hashlib.sha256(images.fingerprint().encode(errors="replace")).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def load(self, i: int) -> tuple[Image.Image, Boxes]:
        """An image and its boxes, float64 [n, 4]: xmin, ymin, xmax, ymax; thread-safe.

        Raises:
            InputError: see `SegmentedImages.load`; or scipy is not installed.
        """
        image, mask = self._images.load(i)
        left_out = {self._background, self._images.ignore}
        return image, mask_boxes(mask, left_out)

    def stamp(self, i: int) -> list[Any]:
        """What changes when an image does."""
        return [self._digest, i]


BoxedImages = VocBoxes | MaskBoxes


def open_boxed_images(
    source: str | os.PathLike[str], decoding: Mapping[str, Any] | None = None
) -> BoxedImages:
    """Finds images with boxes that a user names.

    Args:
        source: a VOC tree or `VOCDetection:root=PATH:split=trainval` (see `VocBoxes`); or what
            `open_segmentation` takes, whose masks then give the boxes.
        decoding: see `rgb_image`; of VOC trees.

    Raises:
        InputError: neither.

    Example:
        >>> image, boxes = open_boxed_images("FashionScenes:split=TEST").load(0)
        >>> boxes.shape
        (3, 4)
    """
    text = os.fspath(source)
    if text.partition(":")[0] == VOC_BOXES or voc_root(Path(text)) is not None:
        return VocBoxes(source, decoding)
    return MaskBoxes(open_segmentation(source))


def mask_boxes(mask: Mask, left_out: set[int | None]) -> Boxes:
    """Boxes around the 4-connected parts of each class.

    Args:
        mask: int64 [H, W].
        left_out: values that are no objects.

    Returns:
        float64 [n, 4]: xmin, ymin, xmax, ymax, the last two exclusive; by class, then row by row.

    Raises:
        InputError: scipy is not installed.

    Example:
        >>> mask_boxes(np.array([[1, 1, 0, 1], [0, 2, 2, 0]]), {0})
        array([[0., 0., 2., 1.],
               [3., 0., 4., 1.],
               [1., 1., 3., 2.]])
    """
    ndimage = need("scipy.ndimage", "object discovery")
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for value in np.unique(mask).tolist()
        if value not in left_out
        for rows, columns in ndimage.find_objects(ndimage.label(mask == value)[0])
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
