"""A small model and five images in two classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from franca_fast.models import VisionTransformer


@pytest.fixture
def model() -> VisionTransformer:
    return VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    generator = torch.Generator().manual_seed(0)
    for name in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "dog/e.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 33, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / name)
    return folder
