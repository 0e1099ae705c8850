"""OpenOOD's lists of images, where its download puts them.

A root has `benchmark_imglist/<benchmark>/<list>.txt`, a line for each image with its path and
label, and the images below `images_largescale/` or `images_classic/`.
"""

from __future__ import annotations

import os
from pathlib import Path

from franca_fast.errors import InputError, did_you_mean
from franca_fast.spelling import spell

LISTS, BENCHMARK = "benchmark_imglist", "imagenet"
IMAGE_FOLDERS = ("images_largescale", "images_classic")


def read_openood_list(root: str, name: str) -> tuple[str, list[str], list[int]]:
    """Reads one of OpenOOD's lists.

    Args:
        root: folder of the data.
        name: of the list, such as "test_ninco.txt", of the ImageNet benchmark; or with the
            benchmark's folder, "cifar10/test_svhn.txt".

    Returns:
        the folder that paths are relative to: of the two, the first that has the list's first
        image; the paths; and their labels, -1 for an image of no class.

    Raises:
        InputError: no such list, a line that is no path and label, or no folder with its images.

    Example:
        >>> read_openood_list("/absent", "test_ninco.txt")
        Traceback (most recent call last):
        ...
        franca_fast.errors.InputError: root: '/absent'; accepted: a folder with benchmark_imglist/
    """
    lists = Path(root, LISTS)
    if not lists.is_dir():
        raise InputError(f"root: '{spell(root)}'; accepted: a folder with {LISTS}/")
    file = lists / name if os.sep in name else lists / BENCHMARK / name
    if not file.is_file():
        known = sorted(path.name for path in file.parent.glob("*.txt"))
        raise InputError(
            f"list: '{spell(name)}'{did_you_mean(file.name, known)}; accepted: "
            f"{', '.join(map(spell, known)) or f'a list in {lists}'}"
        )
    paths, labels = list[str](), list[int]()
    # Bytes of the disk, also where they are not UTF-8.
    for number, line in enumerate(os.fsdecode(file.read_bytes()).split("\n"), 1):
        path, _, label = line.rstrip().rpartition(" ")
        if not line.strip():
            continue
        if not path or path.startswith("/") or not label.lstrip("-").isdecimal():
            raise InputError(f"list: '{spell(name)}', line {number}; accepted: a path and a label")
        paths.append(path)
        labels.append(max(int(label), -1))
    if not paths:
        raise InputError(f"list: '{spell(name)}', without lines; accepted: a path and a label each")
    for folder in (os.path.join(root, part) for part in IMAGE_FOLDERS):
        if os.path.isfile(os.path.join(folder, paths[0])):
            return folder, paths, labels
    raise InputError(
        f"list: '{spell(name)}', whose first image '{spell(paths[0])}' is missing; accepted: "
        f"images below {' or '.join(IMAGE_FOLDERS)} of '{spell(root)}'"
    )
