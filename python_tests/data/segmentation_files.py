"""Small trees of images and masks in the layouts of known data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_pair(image: Path, mask: Path, labels: np.ndarray, palette: bool = False) -> None:
    """An image of noise and its mask."""
    for file in (image, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(labels.size).integers(0, 255, (*labels.shape, 3), np.uint8)
    Image.fromarray(noise).save(image)
    written = Image.fromarray(labels.astype(np.uint8))
    if palette:
        written.putpalette(list(range(256)) * 3)
    written.save(mask)


def write_folder(root: Path, masks: Mapping[str, np.ndarray], classes: str = "") -> Path:
    """`images/` and `masks/`."""
    for name, labels in masks.items():
        write_pair(root / "images" / f"{name}.png", root / "masks" / f"{name}.png", labels)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root
