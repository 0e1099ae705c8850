"""Images with boxes of objects, laid out as PASCAL VOC is (Everingham et al. 2010)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from PIL import Image

from franca_fast.data.benchmark_files import (
    benchmark_source,
    benchmark_tree,
    check_files,
    file_stamp,
    read_list,
    rgb_image,
)
from franca_fast.errors import InputError
from franca_fast.spelling import spell

Boxes = npt.NDArray[np.float64]

VOC_BOXES = "VOCDetection"
_NEEDED = ("JPEGImages", "Annotations", "ImageSets/Main")


class VocBoxes:
    """Images of a VOC tree with the boxes of all their objects.

    The tree has `JPEGImages/*.jpg`, `Annotations/*.xml` and `ImageSets/Main/<split>.txt` with the
    name of an image on each line.

    Args:
        source: a folder such as VOC2007, VOCdevkit with one year in it, or the folder that holds
            that; or `VOCDetection:root=PATH:split=trainval`, or with another split.
        decoding: see `rgb_image`.

    Attributes:
        names: of the images of the list, sorted.

    Raises:
        InputError: another tree, several years, or images or annotations that are missing.
    """

    def __init__(
        self, source: str | os.PathLike[str], decoding: Mapping[str, Any] | None = None
    ) -> None:
        folder, options = benchmark_source(source, VOC_BOXES, {"split": "trainval"})
        list_file = f"ImageSets/Main/{options['split']}.txt"
        needed = [*_NEEDED[:2], list_file]
        self._root = benchmark_tree(voc_root(folder) or folder, VOC_BOXES, needed, [])
        self._decoding = decoding
        self.names = sorted(set(read_list(self._root / list_file)))
        check_files(VOC_BOXES, (file for name in self.names for file in self._files(name)))

    def __len__(self) -> int:
        return len(self.names)

    def load(self, i: int) -> tuple[Image.Image, Boxes]:
        """An image, and its boxes as `read_boxes` gives them; thread-safe.

        Raises:
            InputError: one of them cannot be read, or they are of different sizes.
        """
        file, annotation = self._files(self.names[i])
        image = rgb_image(file, self._decoding)
        return image, read_boxes(annotation, image.size)

    def stamp(self, i: int) -> list[Any]:
        """What changes when an image does."""
        return file_stamp(self._files(self.names[i])[0])

    def _files(self, name: str) -> tuple[Path, Path]:
        root = self._root
        return root / "JPEGImages" / f"{name}.jpg", root / "Annotations" / f"{name}.xml"


def voc_root(folder: Path) -> Path | None:
    """The VOC tree at a folder or below it; None where there is none.

    Args:
        folder: of a year, VOCdevkit, or the folder above it.

    Raises:
        InputError: several years, of which one is to be named.

    Example:
        >>> for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        ...     (Path("VOCdevkit/VOC2007") / name).mkdir(parents=True)
        >>> voc_root(Path(".")).as_posix()
        'VOCdevkit/VOC2007'
    """
    if _is_voc(folder):
        return folder
    places = [one for above in (folder, folder / "VOCdevkit") for one in sorted(above.glob("VOC*"))]
    years = [place for place in places if _is_voc(place)]
    if len(years) > 1:
        raise InputError(
            f"{VOC_BOXES} '{spell(os.fspath(folder))}': has {', '.join(y.name for y in years)}; "
            "accepted: the folder of one year"
        )
    return years[0] if years else None


def read_boxes(annotation: Path, size: tuple[int, int]) -> Boxes:
    """Boxes of all objects of an image, also of truncated and difficult ones.

    VOC counts pixels from 1, both ends within the box. Here a box begins at its first pixel,
    counted from 0, and ends one after its last, as the evaluations of LOST and TokenCut have it.

    Args:
        annotation: the XML file. One that declares a document type, and so could define entities,
            is refused.
        size: (width, height) of the image.

    Returns:
        float64 [n, 4]: xmin, ymin, xmax, ymax.

    Raises:
        InputError: it cannot be read, is of an image of another size, or has an empty box.

    Example:
        >>> box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>"
        >>> size = "<size><width>4</width><height>6</height></size>"
        >>> text = f"<annotation>{size}<object><name>cat</name>{box}</object></annotation>"
        >>> _ = Path("a.xml").write_text(text)
        >>> read_boxes(Path("a.xml"), (4, 6))
        array([[0., 1., 4., 6.]])
    """
    where = f"annotation '{spell(os.fspath(annotation))}'"
    try:
        root = _parsed(annotation.read_bytes())
        boxes = np.array([_box(one) for one in root.findall("object")]).reshape(-1, 4)
        noted = tuple(int(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    except (OSError, ValueError, expat.ExpatError) as error:
        raise InputError(f"{where}: {error}; accepted: boxes as VOC has them") from None
    if noted != size:
        raise InputError(
            f"{where}: of an image of {noted[0]} x {noted[1]} pixels; accepted: the size of its "
            f"image, {size[0]} x {size[1]}"
        )
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        raise InputError(f"{where}: an empty box; accepted: xmin <= xmax and ymin <= ymax")
    return boxes


def _is_voc(folder: Path) -> bool:
    return all((folder / one).is_dir() for one in _NEEDED)


def _box(element: Element) -> tuple[float, float, float, float]:
    left, top, right, bottom = (
        float(element.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    return left - 1, top - 1, right, bottom


def _parsed(data: bytes) -> Element:
    """The document, if it declares no type: only that could define entities, which multiply."""

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return builder.close()
