"""Small data sets in the layouts of public benchmarks, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Coarse random colours, which scaling keeps: an RGB image of (width, height)."""
    generator = np.random.default_rng(seed)
    cells = generator.integers(256, size=(6, 7, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def save_jpeg(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=95)


def save_palette(mask: np.ndarray, file: Path) -> None:
    """A PNG with a palette, as DAVIS and VOC have masks."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([value % 256 for i in range(256) for value in (i * 64, i * 32, i)])
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def write_davis(root: Path, videos: dict[str, list[np.ndarray]], split: str = "val") -> Path:
    """A DAVIS-2017 tree.

    Args:
        root: where.
        videos: name -> masks [H, W] of its frames; objects have their own colours, and noise.
        split: whose list names all videos.
    """
    generator = np.random.default_rng(0)
    for name, masks in videos.items():
        for t, mask in enumerate(masks):
            colours = np.array([[90, 90, 90], [220, 40, 30], [30, 60, 220], [40, 200, 60]])
            shown = colours[np.where(mask == 255, 0, mask)]
            shown = np.clip(shown + generator.integers(-30, 31, shown.shape), 0, 255)
            save_jpeg(
                Image.fromarray(shown.astype(np.uint8)),
                root / f"JPEGImages/480p/{name}/{t:05d}.jpg",
            )
            save_palette(mask, root / f"Annotations/480p/{name}/{t:05d}.png")
    listed = root / f"ImageSets/2017/{split}.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{name}\n" for name in videos))
    return root


def moving_squares(n_frames: int = 5, size: tuple[int, int] = (84, 56)) -> list[np.ndarray]:
    """Masks of two squares that move to the right, of a frame of (width, height)."""
    masks = []
    for t in range(n_frames):
        mask = np.zeros(size[::-1], np.int64)
        mask[7:21, 4 + 7 * t : 24 + 7 * t] = 1
        mask[28:49, 14 + 7 * t : 35 + 7 * t] = 2
        masks.append(mask)
    return masks


def write_spair(root: Path, classes: dict[str, int], split: str = "test") -> Path:
    """A SPair-71k tree with three images a class and random keypoints.

    Args:
        root: where.
        classes: name -> number of pairs, up to 6.
        split: of the pairs.
    """
    generator = np.random.default_rng(0)
    sizes = [(60, 40), (50, 50), (36, 64)]
    number = 0
    lines = []
    for class_name, n_pairs in classes.items():
        names = [f"2008_{seed:06d}" for seed in range(3)]
        for seed, (name, size) in enumerate(zip(names, sizes, strict=True)):
            image = picture(size, seed + len(class_name))
            save_jpeg(image, root / f"JPEGImages/{class_name}/{name}.jpg")
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j][:n_pairs]
        for i, j in pairs:
            number += 1
            n = int(generator.integers(2, 6))
            facts: dict[str, object] = {
                "category": class_name,
                "kps_ids": [str(k) for k in range(n)],
            }
            for side, which in (("src", i), ("trg", j)):
                width, height = sizes[which]
                facts[f"{side}_imname"] = f"{names[which]}.jpg"
                facts[f"{side}_imsize"] = [width, height, 3]
                facts[f"{side}_bndbox"] = [2, 3, width - 5, height - 4]
                facts[f"{side}_kps"] = generator.integers(0, min(width, height), (n, 2)).tolist()
            stem = f"{number:06d}-{names[i]}-{names[j]}:{class_name}"
            file = root / f"PairAnnotation/{split}/{stem}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(facts))
            lines.append(stem)
    listed = root / f"Layout/large/{split}.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("\n".join(lines) + "\n")
    return root


def voc_annotation(size: tuple[int, int], boxes: Sequence[Sequence[float]]) -> str:
    """The XML text of VOC for boxes xmin, ymin, xmax, ymax, counted from 1."""
    objects = "".join(
        "<object><name>cat</name><truncated>1</truncated><difficult>1</difficult><bndbox>"
        f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        "</bndbox></part></object>"
        for a, b, c, d in boxes
    )
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"{objects}</annotation>"
    )


def write_voc(
    root: Path,
    images: dict[str, tuple[Image.Image, Sequence[Sequence[float]]]],
    split: str = "trainval",
) -> Path:
    """A VOC tree of images and boxes, such as VOCdevkit/VOC2007."""
    for name, (image, boxes) in images.items():
        save_jpeg(image, root / f"JPEGImages/{name}.jpg")
        annotation = root / f"Annotations/{name}.xml"
        annotation.parent.mkdir(parents=True, exist_ok=True)
        annotation.write_text(voc_annotation(image.size, boxes))
    listed = root / f"ImageSets/Main/{split}.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{name}\n" for name in images))
    return root
