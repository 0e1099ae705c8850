"""Videos with the masks of their objects, laid out as DAVIS-2017 is (Pont-Tuset et al. 2017)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from franca_fast.data.benchmark_files import (
    benchmark_source,
    benchmark_tree,
    files_by_stem,
    read_list,
)
from franca_fast.data.segmentation import read_mask
from franca_fast.data.segmented_images import VOID, Mask
from franca_fast.errors import InputError
from franca_fast.spelling import spell

_NAME = "DAVIS"
_LEAST = 3  # frames: the first is given, and the last is not scored


@dataclass(frozen=True)
class Video:
    """Frames of a video and their masks.

    Attributes:
        name: of the sequence.
        frames: files of the images, in order.
        masks: a file for each: 0 is the background, 1, 2, ... number the objects, and 255 marks
            pixels that do not count.
    """

    name: str
    frames: list[Path]
    masks: list[Path]

    def mask(self, i: int, size: tuple[int, int]) -> Mask:
        """Reads the mask of a frame.

        Args:
            i: number of the frame, from 0.
            size: (width, height) of the frame.

        Returns:
            int64 [height, width].

        Raises:
            InputError: it cannot be read, has another size, or a value above 255.
        """
        mask = read_mask(self.masks[i])
        if mask.shape != size[::-1]:
            raise InputError(
                f"mask '{spell(os.fspath(self.masks[i]))}': {mask.shape[1]} x {mask.shape[0]} "
                f"pixels; accepted: the size of its frame, {size[0]} x {size[1]}"
            )
        if mask.max() > VOID:
            raise InputError(
                f"mask '{spell(os.fspath(self.masks[i]))}': the value {mask.max()}; accepted: 0 to "
                f"254 for objects, {VOID} for none"
            )
        return mask


def open_davis(source: str | os.PathLike[str]) -> list[Video]:
    """Videos of a DAVIS-2017 tree.

    It has `JPEGImages/480p/<sequence>/*.jpg`, `Annotations/480p/<sequence>/*.png` and
    `ImageSets/2017/<split>.txt` with the name of a sequence on each line.

    Args:
        source: the tree, or the folder above it, in which it is called DAVIS; or
            `DAVIS:root=PATH:split=val:resolution=480p` with these or other values.

    Returns:
        the videos of the list, sorted by name.

    Raises:
        InputError: another tree, a sequence with fewer than three frames, or a frame without a
            mask.
    """
    folder, options = benchmark_source(source, _NAME, {"split": "val", "resolution": "480p"})
    images, masks = (f"{kind}/{options['resolution']}" for kind in ("JPEGImages", "Annotations"))
    list_file = f"ImageSets/2017/{options['split']}.txt"
    root = benchmark_tree(folder, _NAME, [images, masks, list_file], ["DAVIS"])
    names = sorted(set(read_list(root / list_file)))
    return [_video(name, root / images / name, root / masks / name) for name in names]


def _video(name: str, images: Path, masks: Path) -> Video:
    frames = files_by_stem(images, (".jpg", ".jpeg", ".png"))
    if len(frames) < _LEAST:
        raise InputError(
            f"{_NAME} '{spell(name)}': {len(frames)} frames; accepted: {_LEAST} or more, for the "
            "first is given and the last is not scored"
        )
    labelled = files_by_stem(masks, (".png",))
    missing = [frame for frame in frames if frame not in labelled]
    if missing:
        raise InputError(
            f"{_NAME} '{spell(name)}': no mask for {len(missing)} of {len(frames)} frames, "
            f"'{spell(missing[0])}' first; accepted: a PNG for each"
        )
    return Video(name, list(frames.values()), [labelled[frame] for frame in frames])
