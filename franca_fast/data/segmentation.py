"""From what a user writes to images with masks: folders and the layouts of known data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from franca_fast.data.dataset_strings import check_choice, expanded, split_dataset_string
from franca_fast.data.decoding import BadImage, decode_rgb, is_image_name
from franca_fast.data.fashion_scenes import fashion_scenes
from franca_fast.data.segmented_images import VOID, Mask, SegmentedImages
from franca_fast.errors import InputError
from franca_fast.paths import why_unreadable
from franca_fast.spelling import spell

_MASK_MODES = ("L", "P", "1", "I;16", "I")
VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_ADE20K_LABELS = 151
_CLASS_LIST = "classes.txt"
_MOST_CLASSES = 10_000  # pixels are counted by true and predicted class: 800 MB


class ImageMaskFiles(SegmentedImages):
    """Pairs of files.

    Args:
        description: what the user wrote.
        pairs: name -> path of the image, path of the mask.
        class_names: of the mask values 0, 1, ...
        ignore: the mask value that is never scored.
    """

    def __init__(
        self,
        description: str,
        pairs: dict[str, tuple[Path, Path]],
        class_names: Sequence[str],
        ignore: int | None,
    ) -> None:
        if not pairs:
            raise InputError(f"source: '{description}', no images; accepted: one or more")
        self.description = description
        self.names = list(pairs)
        self.class_names = list(class_names)
        self.ignore = ignore
        self._pairs = pairs

    def __repr__(self) -> str:
        return f"{self.description} ({len(self)} images, {self.n_classes} classes)"

    def fingerprint(self) -> str:
        """Names, sizes and times of change of all files."""
        lines = [repr(self)]
        for name, files in self._pairs.items():
            status = [file.stat() for file in files]
            lines.append(f"{name} {[(one.st_size, one.st_mtime_ns) for one in status]}")
        return "\n".join(lines)

    def load(self, i: int) -> tuple[Image.Image, Mask]:
        """See `SegmentedImages.load`."""
        image_file, mask_file = self._pairs[self.names[i]]
        try:
            image = decode_rgb(image_file.read_bytes())
        except (BadImage, OSError) as error:
            raise InputError(
                f"image '{spell(str(image_file))}': {error}; accepted: an image that can be read"
            ) from error
        mask = read_mask(mask_file)
        if mask.shape != (image.height, image.width):
            raise InputError(
                f"mask '{spell(str(mask_file))}': {mask.shape[1]} x {mask.shape[0]} pixels; "
                f"accepted: the size of its image, {image.width} x {image.height}"
            )
        wrong = (mask >= self.n_classes) & (mask != (-1 if self.ignore is None else self.ignore))
        if wrong.any():
            void = "" if self.ignore is None else f", and {self.ignore} for none"
            raise InputError(
                f"mask '{spell(str(mask_file))}': the value {mask[wrong][0]}; accepted: below "
                f"{self.n_classes}, the classes{void}"
            )
        return image, mask


def read_mask(file: Path) -> Mask:
    """Reads a mask: class numbers as grey levels, or as places in a palette.

    Returns:
        int64 [height, width].

    Raises:
        InputError: it cannot be read, has colours, or is a JPEG.
    """
    try:
        with Image.open(file) as image:
            if image.format == "JPEG":  # whose compression makes numbers of neighbouring classes
                raise InputError(
                    f"mask '{spell(str(file))}': a JPEG, which changes class numbers; accepted: a "
                    "PNG"
                )
            if image.mode not in _MASK_MODES:
                raise InputError(
                    f"mask '{spell(str(file))}': an image of mode {image.mode}; accepted: class "
                    f"numbers, a PNG of mode {', '.join(_MASK_MODES)}"
                )
            return np.asarray(image).astype(np.int64)
    except InputError:
        raise
    except Exception as error:  # each decoder has errors of its own
        raise InputError(
            f"mask '{spell(str(file))}': {error}; accepted: a PNG that can be read"
        ) from error


def open_segmentation(source: str | os.PathLike[str]) -> SegmentedImages:
    """Finds images and masks that a user names.

    Accepted:

    - a folder with `images/` and `masks/`: files of the same stem, masks as PNG with class numbers
      or a palette, 255 for pixels without a class. `classes.txt` beside them, a name a line, tells
      the classes; without it their numbers are those that occur;
    - `ImageMasks:root=PATH`, the same with `ignore=N` or `ignore=none` in place of 255;
    - `VOCSegmentation:root=PATH:split=trainaug` (or train, val): `images/*.jpg`,
      `SegmentationClassAug/*.png` where they are and `SegmentationClass/*.png` elsewhere, and
      `sets/<split>.txt`; or PASCAL's own folders: `JPEGImages/` and
      `ImageSets/Segmentation/<split>.txt`; 21 classes, 255 ignored;
    - `ADE20K:root=PATH:split=training` (or validation): `images/<split>/` and
      `annotations/<split>/`; 151 labels of which 0 is ignored;
    - `FashionScenes:split=TRAIN` (or TEST), made from the bundled garments.

    Args:
        source: what to open.

    Raises:
        InputError: nothing there, an image without its mask, or an unknown data set.

    Example:
        >>> scenes = open_segmentation("FashionScenes:split=TEST")
        >>> scenes.n_classes, scenes.load(0)[1].shape
        (11, (112, 112))
    """
    text = os.fspath(source)
    named = split_dataset_string(text, {name: known for name, (_, known) in _DATASETS.items()})
    if named is None:
        return _open_folder({"root": text}, text)
    return _DATASETS[named[0]][0](named[1], text)


def _open_folder(options: dict[str, str], text: str) -> SegmentedImages:
    root = _existing(options["root"])
    images, masks = (_files(root / folder, text) for folder in ("images", "masks"))
    pairs = _paired(images, masks, text)
    ignore = _ignored(options.get("ignore", str(VOID)))
    listed = root / _CLASS_LIST
    if listed.is_file():
        names = [line.strip() for line in _text(listed).splitlines() if line.strip()]
    else:
        names = [str(i) for i in range(1 + _highest(pairs, ignore))]
    if len(names) > _MOST_CLASSES:
        raise InputError(
            f"source: '{text}', {len(names)} classes; accepted: {_MOST_CLASSES} or fewer, and a "
            "mask value that stands for none by ignore="
        )
    return ImageMaskFiles(text, pairs, names, ignore)


def _open_voc(options: dict[str, str], text: str) -> SegmentedImages:
    split = options.get("split", "trainaug").lower()
    check_choice("split", split, ("train", "trainaug", "trainval", "val"))
    root = _existing(options["root"])
    lists = (root / "sets", root / "ImageSets" / "Segmentation")
    found = [folder / f"{split}.txt" for folder in lists if (folder / f"{split}.txt").is_file()]
    if not found:
        raise _missing(text, f"sets/{split}.txt or ImageSets/Segmentation/{split}.txt")
    images = next((root / one for one in ("images", "JPEGImages") if (root / one).is_dir()), None)
    if images is None:
        raise _missing(text, "images/ or JPEGImages/")
    kinds = ("SegmentationClassAug", "SegmentationClass")
    pairs = {}
    for name in _text(found[0]).split():
        if "/" in name:  # lists of pairs, as some write them: /JPEGImages/a.jpg /Segm.../a.png
            raise InputError(f"source: '{found[0]}' has '{name}'; accepted: a name a line")
        masks = [root / kind / f"{name}.png" for kind in kinds]
        mask = next((file for file in masks if file.is_file()), None)
        if mask is None:
            raise _missing(text, " or ".join(f"{kind}/{name}.png" for kind in kinds))
        if not (image := images / f"{name}.jpg").is_file():
            raise _missing(text, f"{images.name}/{name}.jpg")
        pairs[name] = (image, mask)
    return ImageMaskFiles(text, pairs, VOC_CLASSES, VOID)


def _open_ade20k(options: dict[str, str], text: str) -> SegmentedImages:
    split = options.get("split", "training").lower()
    check_choice("split", split, ("training", "validation"))
    root = _existing(options["root"])
    images, masks = (_files(root / kind / split, text) for kind in ("images", "annotations"))
    names = [str(i) for i in range(_ADE20K_LABELS)]
    return ImageMaskFiles(text, _paired(images, masks, text), names, 0)


def _open_scenes(options: dict[str, str], text: str) -> SegmentedImages:
    split = options.get("split", "train").lower()
    check_choice("split", split, ("train", "test"))
    seed = options.get("seed", "0")
    if not seed.isdecimal():
        raise InputError(f"seed: {seed}; accepted: a whole number, 0 or more")
    return fashion_scenes(split, int(seed))


_DATASETS: dict[str, tuple[Callable[[dict[str, str], str], SegmentedImages], tuple[str, ...]]] = {
    "ImageMasks": (_open_folder, ("root", "ignore")),
    "VOCSegmentation": (_open_voc, ("root", "split")),
    "ADE20K": (_open_ade20k, ("root", "split")),
    "FashionScenes": (_open_scenes, ("split", "seed")),
}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"list '{spell(str(file))}': {error}; accepted: a text of UTF-8, a name a line"
        ) from error


def _existing(path: str) -> Path:
    folder = Path(expanded(path))
    if not folder.is_dir():
        why = why_unreadable(str(folder)) or "not a folder"
        datasets = ", ".join(_DATASETS)
        raise InputError(
            f"source: '{spell(path)}': {why}; accepted: a folder with images/ and masks/, or a "
            f"dataset ({datasets})"
        )
    return folder


def _files(folder: Path, text: str) -> dict[str, Path]:
    """Images of a folder by their path below it, without the suffix."""
    if not folder.is_dir():
        raise _missing(text, f"{folder.name}/ in {spell(str(folder.parent))}")
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if is_image_name(file.name) and file.is_file():
            stem = str(file.relative_to(folder).with_suffix(""))
            if stem in found:
                raise InputError(
                    f"source: '{spell(str(file))}' beside '{found[stem].name}'; accepted: one "
                    "file of a stem"
                )
            found[stem] = file
    return found


def _paired(
    images: dict[str, Path], masks: dict[str, Path], text: str
) -> dict[str, tuple[Path, Path]]:
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        kind, other = ("image", "mask") if alone[0] in images else ("mask", "image")
        raise InputError(
            f"source: '{text}', {len(alone)} files without a partner, such as the {kind} "
            f"'{spell(alone[0])}', which has no {other}; accepted: pairs of the same stem"
        )
    return {stem: (file, masks[stem]) for stem, file in images.items()}


def _highest(pairs: dict[str, tuple[Path, Path]], ignore: int | None) -> int:
    """The highest class number that occurs."""
    highest = 0
    for _, file in pairs.values():
        values = np.unique(read_mask(file))
        highest = max(highest, *values[values != (-1 if ignore is None else ignore)].tolist(), 0)
    return highest


def _ignored(text: str) -> int | None:
    if text.lower() == "none":
        return None
    if not text.isdecimal() or int(text) >= 2**31:
        raise InputError(f"ignore: {text}; accepted: a mask value, or none")
    return int(text)


def _missing(text: str, what: str) -> InputError:
    return InputError(f"source: '{text}' lacks {what}; accepted: the layout in docs/protocols.md")
