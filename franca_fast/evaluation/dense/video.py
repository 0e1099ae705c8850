"""Objects of a video followed by the similarity of patches (DAVIS-2017, as DINO does it)."""

from __future__ import annotations

import math
import os
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from franca_fast.data.benchmark_files import file_stamp, rgb_image
from franca_fast.data.davis import Video, open_davis
from franca_fast.data.segmented_images import VOID, Mask
from franca_fast.data.transform import normalised
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.image_grids import (
    Prepared,
    image_grids,
    patch_size_of,
)
from franca_fast.evaluation.dense.label_propagation import label_map, propagate_labels
from franca_fast.evaluation.dense.mask_measures import contour_accuracy, region_similarity
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.extras import need
from franca_fast.evaluation.protocol import (
    Protocol,
    Reading,
    Role,
    Source,
    check_dims,
    on_sources_of,
)
from franca_fast.evaluation.result import Result
from franca_fast.spelling import spell

_NAME = "video"
Size = tuple[int, int]


@dataclass(frozen=True)
class VideoSettings:
    """Settings of the protocol.

    Attributes:
        img_size: the shorter side of the frames, pixels; both sides are then cut to multiples of
            the patch, by scaling.
        n_last_frames: frames before the current one that labels come from, besides the first.
        radius: patches around a position that labels come from; None for all.
        top_k: the most similar patches that count.
        temperature: weights are exp(cosine / temperature).

    Raises:
        InputError: a value outside its range.
    """

    img_size: int = 480
    n_last_frames: int = 7
    radius: int | None = 12
    top_k: int = 5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("img_size", 1), ("n_last_frames", 0), ("top_k", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: {least} or more")
        if self.radius is not None and self.radius < 0:
            raise InputError(f"radius: {self.radius}; accepted: 0 or more, or none")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature: {self.temperature}; accepted: a positive number")


def video(
    encoder: Encoder,
    data: Source | Sequence[Video],
    settings: VideoSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """How well the masks of a video's first frame are carried to the others.

    The first mask, scaled to patches (nearest), is given. Each later frame takes its soft labels
    from the first frame and the last ones (`propagate_labels`); `label_map` makes a mask of
    them, which is scaled to the frame (nearest). As in the evaluation of DAVIS-2017, the first and
    the last frame are not scored, every object of the first mask counts once, and "J&F" is the mean
    of J (region) and F (contour), each averaged over an object's frames and then over objects.
    Pixels marked 255 count in neither; objects that only later masks show are background.

    Args:
        encoder: with patch tokens, on its device.
        data: a DAVIS-2017 tree (see `franca_fast.data.davis.open_davis`), or videos.
        settings: None takes the protocol's.
        dims: widths m; features are cut to their first m entries before they are normalised.
        reading: how images are read.

    Returns:
        per width "J&F", "J" and "F" in per cent; in `details` J and F of each object.

    Raises:
        InputError: data that do not fit, an encoder without patch tokens, a wrong width, or scipy
            is not installed.
    """
    settings, reading = settings or VideoSettings(), reading or Reading()
    need("scipy.ndimage", _NAME)
    videos = open_davis(data) if isinstance(data, (str, os.PathLike)) else data
    if not videos:
        raise InputError("data: no videos; accepted: one or more")
    patch_size = patch_size_of(encoder)
    # Nothing is asked of the last frame.
    items = [(one, t) for one in videos for t in range(len(one.frames) - 1)]
    prepare = partial(_prepared, settings=settings, patch_size=patch_size, reading=reading)
    scores: dict[int, dict[str, dict[str, float]]] = {}
    trackers: dict[int, _Tracker] = {}
    with tqdm(total=len(items), unit="frame", disable=None if reading.progress else True) as bar:
        for (one, t), size, grid in image_grids(encoder, items, prepare, reading):
            mask = one.mask(t, size)
            for width in check_dims(dims, grid.shape[-1]):
                features = F.normalize(grid[..., :width], dim=-1)
                if t == 0:
                    trackers[width] = _Tracker(one, mask, features, patch_size, settings)
                else:
                    trackers[width].follow(features, mask)
                if t == len(one.frames) - 2:
                    scores.setdefault(width, {}).update(trackers[width].scores())
            bar.update()
    figures = {width: _figures(of_objects) for width, of_objects in scores.items()}
    details = {str(width): of_objects for width, of_objects in scores.items()}
    described = {
        "images": sum(len(one.frames) for one in videos),
        "videos": len(videos),
        "objects": len(next(iter(scores.values()))),
    }
    return Result(_NAME, figures, settings, {"data": described}, {}, details)


def frame_size(size: Size, shorter: int, patch_size: int) -> Size:
    """The size to which a frame is scaled.

    The shorter side gets `shorter` pixels and the other one keeps the proportion; then both are
    cut to multiples of the patch, the frame being squeezed a little.

    Args:
        size: (width, height) of the frame.
        shorter: pixels.
        patch_size: pixels.

    Returns:
        (width, height).

    Example:
        >>> frame_size((854, 480), 480, 14)
        (854, 476)
    """
    width, height = (
        max(1, side * shorter // min(size) // patch_size) * patch_size for side in size
    )
    return width, height


def first_labels(mask: Mask, grid: Size) -> Tensor:
    """The given mask at the size of the patches.

    Args:
        mask: int64 [H, W]; 0 is the background, 255 counts as such.
        grid: (height, width) in patches.

    Returns:
        float32 [1 + objects, h, w], one of them 1 at each place.

    Example:
        >>> first_labels(np.array([[0, 0, 2, 2], [0, 0, 2, 255]]), (1, 2)).shape
        torch.Size([3, 1, 2])
    """
    objects = np.where(mask == VOID, 0, mask).astype(np.uint8)
    image = Image.fromarray(objects).resize(grid[::-1], Image.Resampling.NEAREST)
    numbers = torch.from_numpy(np.array(image)).long()
    return F.one_hot(numbers, int(objects.max()) + 1).permute(2, 0, 1).float()


class _Tracker:
    """The labels of a video at one width of the features, frame by frame."""

    def __init__(
        self, video: Video, mask: Mask, features: Tensor, patch_size: int, settings: VideoSettings
    ) -> None:
        height, width = features.shape[:2]
        labels = first_labels(mask, (height, width)).to(features.device)
        if len(labels) == 1:
            raise InputError(
                f"mask '{spell(str(video.masks[0]))}': no object; accepted: a first mask with one "
                "or more"
            )
        self._video, self._patch_size, self._settings = video, patch_size, settings
        self._first = (features, labels)
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.n_last_frames)
        self._measured: list[list[tuple[float, float]]] = [[] for _ in labels[1:]]

    def follow(self, features: Tensor, mask: Mask) -> None:
        """Labels the next frame, and scores it against its mask."""
        sources = [self._first, *self._last]
        if features.shape != self._first[0].shape:
            grids = [tuple(one.shape[:2]) for one in (features, self._first[0])]
            raise InputError(
                f"video '{spell(self._video.name)}': a frame of {grids[0]} patches, and {grids[1]} "
                "before; accepted: frames of one size"
            )
        labels = propagate_labels(
            features,
            torch.stack([source for source, _ in sources]),
            torch.stack([label for _, label in sources]),
            radius=self._settings.radius,
            top_k=self._settings.top_k,
            temperature=self._settings.temperature,
        )
        self._last.append((features, labels))
        numbers = label_map(labels, self._patch_size).cpu().numpy().astype(np.uint8)
        size = (mask.shape[1], mask.shape[0])
        predicted = np.array(Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST))
        void = mask == VOID
        for number, measured in enumerate(self._measured, start=1):
            pair = (mask == number, predicted == number, void)
            measured.append((region_similarity(*pair), contour_accuracy(*pair)))

    def scores(self) -> dict[str, dict[str, float]]:
        """J and F of each object, per cent, under the name that DAVIS gives it."""
        return {
            f"{spell(self._video.name)}_{number}": {
                name: 100 * statistics.fmean(values)
                for name, values in zip("JF", zip(*measured, strict=True), strict=True)
            }
            for number, measured in enumerate(self._measured, start=1)
        }


def _figures(of_objects: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    region, contour = (statistics.fmean(one[name] for one in of_objects.values()) for name in "JF")
    return {"J&F": (region + contour) / 2, "J": region, "F": contour}


def _prepared(
    item: tuple[Video, int], settings: VideoSettings, patch_size: int, reading: Reading
) -> Prepared:
    one, t = item
    file = one.frames[t]
    image = rgb_image(file, reading.decoding)
    size = frame_size(image.size, settings.img_size, patch_size)
    pixels = normalised(image.resize(size, Image.Resampling.BILINEAR))
    return Prepared(str(file), pixels, [*file_stamp(file), "bilinear", *size], image.size)


PROTOCOL = Protocol(
    name=_NAME,
    summary="objects of a video followed from its first frame (DAVIS-2017)",
    settings=VideoSettings,
    roles=(
        Role(
            "data",
            "a DAVIS-2017 folder, or DAVIS:root=PATH:split=val",
            several=False,
            opens=open_davis,
        ),
    ),
    run=on_sources_of(video, "data"),
)
