"""Small image files, folders and shards for the tests of the data."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    """A smooth picture of random colours."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), np.uint8)
    image = Image.fromarray(coarse if channels > 1 else coarse[..., 0], mode)
    return image.resize(size, Image.Resampling.BILINEAR)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    return encoded(picture(seed, size))


def tar_bytes(members: Iterable[tuple[str, bytes]], **options: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_shards(folder: Path, shards: int, per_shard: int) -> str:
    """Shards s-0.tar, s-1.tar, ... of pictures named by their number; returns their pattern."""
    for shard in range(shards):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        members = [(f"{number:04d}.png", png(number)) for number in numbers]
        (folder / f"s-{shard}.tar").write_bytes(tar_bytes(members))
    return str(folder / f"s-{{0..{shards - 1}}}.tar")


def write_folder(folder: Path, classes: Iterable[str], per_class: int) -> Path:
    """A folder of pictures with one sub-folder per class."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            (folder / name / f"{i}.png").write_bytes(png(100 * c + i))
    return folder


# Thin shapes, which a resize of the whole image would make gigabytes of.
_MEASURE = """
import io, resource
from PIL import Image
SHAPES = [(60_000, 1), (1, 60_000), (2, 4_000), (4_000, 2)]
FILES = [io.BytesIO() for _ in SHAPES]
for shape, file in zip(SHAPES, FILES):
    Image.effect_noise(shape, 50).save(file, "PNG")
{before}
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{work}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)
"""


def memory_taken(work: str, before: str = "") -> float:
    """How much the most memory in use grew during some lines of Python, in MiB.

    They know `Image`, `SHAPES` and `FILES`, PNG files of these shapes. The lines `before` are run
    before, since what they do for the first time takes memory, too.
    """
    before = before or work.replace("SHAPES", "[(9, 9)]").replace("FILES", "[]")
    code = _MEASURE.format(before=before.replace("64_000_000", "9"), work=work)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])
