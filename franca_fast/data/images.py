"""Images in a fixed order, for features, nearest neighbours and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

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
            for shard in self._source.shards:
                index = shard.index()
                self.account.open(index.opened)
                for i in range(len(index)):
                    ref = index.ref(i)
                    image = self._decode(ref, files)
                    if image is not None:
                        yield ref.name, image, self._label(index, i, files)
        finally:
            files.close()

    def _decode(self, ref: SampleRef, files: OpenFiles) -> Image.Image | None:
        try:
            with held_in_memory(), without_remarks():
                lazy = LazyImage(read_sample(ref, files), self._decoding, ref.name)
                image = lazy.load()
                image = image if image.mode == "RGB" else image.convert("RGB")
        except BadImage as error:
            self.account.skip(BadSample(ref.location, error.reason, error.detail))
            return None
        self.account.used += 1
        self.account.add((), lazy.remarks(ref.location))
        return image

    def _label(self, index: ShardIndex, i: int, files: OpenFiles) -> Label | None:
        remarks = list[BadSample]()
        label = index.label(i, remarks, files)
        self.account.add((), remarks)
        return label


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
