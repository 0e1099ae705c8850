"""Images in a fixed order, for features, nearest neighbours and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard, TypeVar

from PIL import Image

from franca_fast.data.accounting import BadSample, ImageAccount, SkipCounter
from franca_fast.data.classes import Classes
from franca_fast.data.decoding import (
    MAX_IMAGE_PIXELS,
    BadImage,
    DecodeSettings,
    LazyImage,
    held_in_memory,
    without_remarks,
)
from franca_fast.data.samples import Label, OpenFiles, SampleRef, read_sample
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.sources import open_source
from franca_fast.data.threads import in_order

_Prepared = TypeVar("_Prepared")
_Place = tuple[ShardIndex, int]


class Images:
    """Images of a source, in the order of its shards and members; made by `open_images`.

    Each iteration starts anew and gives (name, RGB image, label or None).

    Attributes:
        class_names: names of the labels 0, 1, ...; empty where labels are numbers without names.
            A name that only a shard's labels say is added when it is met.
        account: what became of the images, over all iterations.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        skipped: SkipCounter,
        decoding: DecodeSettings,
        allow_pipe: bool,
    ) -> None:
        self._source = open_source(source, allow_pipe=allow_pipe, max_missing_fraction=1)
        self._decoding = decoding
        self._classes = Classes(self._source.class_names)
        self.class_names = self._classes.names
        self.account = ImageAccount(skipped=skipped)

    @property
    def skipped(self) -> SkipCounter:
        """What was skipped, over all iterations."""
        return self.account.skipped

    def __iter__(self) -> Iterator[tuple[str, Image.Image, int | None]]:
        for name, image, label in self.labelled():
            yield name, image, self._classes.number(label)

    def labelled(self) -> Iterator[tuple[str, Image.Image, Label | None]]:
        """The same, but a label is the class's name, or its number where it has no name."""
        files = OpenFiles(1)
        try:
            for index, i in self._places():
                with without_remarks():
                    image, said = self._decode(index.ref(i), _as_it_is, files)
                if self._counted(image, said):
                    yield index.ref(i).name, image, self._label(index, i, files)
        finally:
            files.close()

    def prepared(
        self, prepare: Callable[[Image.Image], _Prepared], num_workers: int, ahead: int
    ) -> Iterator[tuple[str, _Prepared, Label | None]]:
        """As `labelled`, with what a function makes of each image in place of the image.

        Args:
            prepare: called in threads. An image for which it raises MemoryError is skipped.
            num_workers: threads that read, decode and prepare images; 0 for none.
            ahead: images to be prepared before they are asked for.
        """

        def work(place: _Place) -> tuple[_Place, _Prepared | None, list[BadSample]]:
            index, i = place
            return place, *self._decode(index.ref(i), prepare)

        files = OpenFiles(1)  # for the labels
        try:
            with without_remarks():
                done = in_order(work, self._places(), num_workers, ahead)
                for (index, i), result, said in done:
                    if self._counted(result, said):
                        yield index.ref(i).name, result, self._label(index, i, files)
        finally:
            files.close()

    def _places(self) -> Iterator[_Place]:
        for shard in self._source.shards:
            index = shard.index()
            self.account.open(index.opened)
            for i in range(len(index)):
                yield index, i

    def _decode(
        self,
        ref: SampleRef,
        prepare: Callable[[Image.Image], _Prepared],
        files: OpenFiles | None = None,
    ) -> tuple[_Prepared | None, list[BadSample]]:
        """What is made of an image, and what is to be said of it; or None, and why."""
        try:
            with held_in_memory():
                lazy = LazyImage(read_sample(ref, files), self._decoding, ref.name)
                image = lazy.load()
                result = prepare(image if image.mode == "RGB" else image.convert("RGB"))
        except BadImage as error:
            return None, [BadSample(ref.location, error.reason, error.detail)]
        return result, lazy.remarks(ref.location)

    def _counted(self, result: _Prepared | None, said: list[BadSample]) -> TypeGuard[_Prepared]:
        """Counts an image, and says whether there is one."""
        if result is None:
            self.account.add(said, ())
            return False
        self.account.used += 1
        self.account.add((), said)
        return True

    def _label(self, index: ShardIndex, i: int, files: OpenFiles) -> Label | None:
        remarks = list[BadSample]()
        label = index.label(i, remarks, files)
        self.account.add((), remarks)
        return label


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def open_images(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    skipped: SkipCounter | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
    allow_pipe: bool = False,
) -> Images:
    """Opens images in a fixed order: files, folders, shards or a dataset string.

    Names are the paths of image files as given, paths relative to a folder, or names of members of
    a shard. Classes are sub-folders, or what the `.cls` or `.json` file beside an image in a shard
    says, joined by name over all sources; a label is the number of its name in `class_names`. Where
    no class has a name, labels are the numbers that the shards say.

    Args:
        source: one or several, as `open_source` takes them.
        skipped: counts files that cannot be used; None makes a new counter (`Images.skipped`).
        max_image_pixels: larger images are skipped without decoding them.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".
        allow_pipe: whether `pipe:` sources may run commands.

    Returns:
        an iterable of (name, PIL image of mode RGB, label or None).

    Raises:
        InputError: nothing at a path, or no images there; while iterating: names of classes after
            numbers without names.

    Example:
        >>> name, image, label = next(iter(open_images("FashionMNIST:split=TEST")))
        >>> image.size, image.mode
        ((28, 28), 'RGB')
    """
    decoding = DecodeSettings(max_image_pixels, levels)
    return Images(source, SkipCounter() if skipped is None else skipped, decoding, allow_pipe)
