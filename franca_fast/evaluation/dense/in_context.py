"""In-context segmentation: patches take the labels of their nearest neighbours in a memory.

Hummingbird (Balažević et al. 2023, arXiv 2306.01667), with the settings of open-hummingbird 2.0.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from franca_fast.data import open_segmentation
from franca_fast.data.segmented_images import SegmentedImages, matched_masks
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.memory.images import Augmentation
from franca_fast.evaluation.dense.memory.stream import MemoryStream
from franca_fast.evaluation.dense.memory.voting import Plan, Voting
from franca_fast.evaluation.dense.patch_grids import check_patch_size, patch_width
from franca_fast.evaluation.dense.segmentation_score import Confusion
from franca_fast.evaluation.encoders import Encoder, as_encoder
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

THEIRS = "mIoU (open-hummingbird)"


@dataclass(frozen=True)
class InContextSettings:
    """Settings of in-context segmentation.

    Raises:
        InputError: a value outside its range.

    Example:
        >>> InContextSettings(augmentation_epochs=2, memory_size=10_240_000).k
        30
    """

    img_size: int = 518  # side in pixels of the square that images become
    k: int = 30  # neighbours of a patch
    temperature: float = 0.02  # neighbours count softmax(cosine / temperature)
    memory_size: int | None = None  # patches in all; none keeps every patch
    augmentation: bool = True  # images of the memory are cropped and coloured at random
    augmentation_epochs: int = 1  # times that each image enters the memory
    crop_scale: tuple[float, ...] = (0.5, 2.0)  # range of a crop's area, of the image's
    jitter: float = 0.1  # change of brightness, contrast, saturation and hue, at most
    jitter_probability: float = 0.5  # of each of the four
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # a memory for each; figures are means
    memory_gb: float = 12.0  # GB that the search may take; changes nothing but time

    def __post_init__(self) -> None:
        for name in ("img_size", "k", "augmentation_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: 1 or more")
        for name in ("temperature", "memory_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: a positive number")
        if self.memory_size is not None and self.memory_size < 1:
            raise InputError(f"memory_size: {self.memory_size}; accepted: 1 or more, or none")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds: {self.seeds}; accepted: one or more different numbers")
        if self.augmentation_epochs > 1 and not self.augmentation:
            raise InputError(
                f"augmentation_epochs: {self.augmentation_epochs} without augmentation, the same "
                "patches again; accepted: 1"
            )
        _ = self.augmentation_of_images

    @property
    def augmentation_of_images(self) -> Augmentation | None:
        """What happens to images of the memory."""
        if not self.augmentation:
            return None
        scale = tuple(self.crop_scale)
        if len(scale) != 2:
            raise InputError(f"crop_scale: {scale}; accepted: two numbers")
        return Augmentation(self.img_size, scale, self.jitter, self.jitter_probability)

    @property
    def seeds_that_matter(self) -> tuple[int, ...]:
        """One where nothing is random: without augmentation and with every patch kept."""
        return self.seeds if self.augmentation or self.memory_size else self.seeds[:1]


def in_context(
    encoder: Encoder | str | os.PathLike[str],
    train: SegmentedImages | Source,
    test: SegmentedImages | Source,
    settings: InContextSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """Segments the test images by the labels of similar patches of the training images.

    For each patch x of a test image, the k patches of the memory with the largest cosine s_i are
    found, exactly; their labels y_i, the class frequencies of their pixels, give the soft
    prediction sum_i softmax(s / temperature)_i y_i. It is upsampled bilinearly to the mask, and the
    likeliest class is each pixel's prediction. The memory is never held: it passes by in blocks.

    Args:
        encoder: with patch tokens, on its device; or what `load_model` takes.
        train: images with masks, or what `open_segmentation` takes; they are the memory.
        test: the same; its classes are matched with those of `train` by name.
        settings: None takes the protocol's.
        dims: widths; None takes the full width only. The images are encoded once for all.
        reading: how images are read. With `features_cache`, features of images that are not
            augmented are kept there, and an interrupted search goes on where it was.

    Returns:
        for each width "mIoU", per cent, the mean over the classes that the test masks show, at the
        masks' own sizes; and "mIoU (open-hummingbird)", in which predicted classes are matched to
        true ones by the Hungarian method first, and classes that do not occur or are ignored count
        as 0. Means over seeds, with their standard errors; one seed where nothing is random.

    Raises:
        InputError: classes that do not match, no patch tokens, too little `memory_gb` for one
            image, scipy is not installed, or what `patch_grids` raises.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=14, img_size=28)
        >>> scenes = open_segmentation("FashionScenes:split=TEST")
        >>> from franca_fast.evaluation.dense.memory.images import Part
        >>> few = Part(scenes, range(4))
        >>> settings = InContextSettings(img_size=112, augmentation=False, k=1)
        >>> in_context(model, few, few, settings).figures[128]["mIoU"] > 50
        True
    """
    need("scipy.optimize", "in-context segmentation")
    settings, reading = settings or InContextSettings(), reading or Reading()
    encoder = as_encoder(encoder)
    train = train if isinstance(train, SegmentedImages) else open_segmentation(train)
    test = matched_masks(
        train, test if isinstance(test, SegmentedImages) else open_segmentation(test)
    )
    for role, data in (("train", train), ("test", test)):
        if not len(data):
            raise InputError(f"{role}: no images; accepted: one or more")
    check_patch_size(encoder, settings.img_size)
    width = patch_width(encoder, settings.img_size)
    stream = MemoryStream(
        encoder,
        train,
        settings.img_size,
        settings.augmentation_of_images,
        settings.augmentation_epochs,
        settings.memory_size,
        reading,
    )
    plan = Plan(
        dims=check_dims(dims, width),
        seeds=settings.seeds_that_matter,
        k=settings.k,
        temperature=settings.temperature,
        img_size=settings.img_size,
        memory_gb=settings.memory_gb,
        facts=dataclasses.asdict(settings),
    )
    voting = Voting(encoder, stream, train, test, plan, width, reading)
    confusions = voting.run()
    return _result(settings, train, test, stream, voting, confusions)


def open_hummingbird_miou(confusion: Confusion) -> tuple[float, list[int]]:
    """Their figure: the mean IoU after the best one-to-one matching of predictions to classes.

    A class without pixels in labels and predictions counts as 0, also one that is ignored.

    Args:
        confusion: counts of pixels.

    Returns:
        per cent, and the class that each predicted one is taken for.

    Example:
        >>> import torch
        >>> confusion = Confusion(2)
        >>> confusion.matrix[:] = torch.tensor([[0, 4], [4, 0]])
        >>> confusion.miou(), open_hummingbird_miou(confusion)
        (0.0, (100.0, [1, 0]))
    """
    both = confusion.matrix.double()
    either = both.sum(0) + both.sum(1, keepdim=True) - both
    iou = (both / either.clamp(min=1)).T.numpy()  # rows are predictions
    rows, classes = need("scipy.optimize", "in-context segmentation").linear_sum_assignment(
        iou, maximize=True
    )
    return 100 * float(iou[rows, classes].mean()), classes.tolist()


def _result(
    settings: InContextSettings,
    train: SegmentedImages,
    test: SegmentedImages,
    stream: MemoryStream,
    voting: Voting,
    confusions: Mapping[int, Sequence[Confusion]],
) -> Result:
    seeds = settings.seeds_that_matter
    figures, errors = dict[int, dict[str, float]](), dict[int, dict[str, float]]()
    details: dict[str, Any] = {
        "memory_patches": stream.n_views * stream.kept,
        "patches_per_image": stream.kept,
        "seeds": list(seeds),
        "groups_of_queries": len(voting.groups),
        "figures_of_seeds": {},
        "iou": {},
        "matching": {},
    }
    if len(seeds) < len(settings.seeds):
        details["remark"] = "nothing is random without augmentation: one seed"
    for width, of_seeds in confusions.items():
        of_seeds[0].check_any()
        theirs = [open_hummingbird_miou(confusion) for confusion in of_seeds]
        values = {
            "mIoU": [confusion.miou() for confusion in of_seeds],
            THEIRS: [miou for miou, _ in theirs],
        }
        figures[width] = {name: statistics.fmean(each) for name, each in values.items()}
        if len(seeds) > 1:
            errors[width] = {
                name: statistics.stdev(each) / math.sqrt(len(seeds))
                for name, each in values.items()
            }
        details["figures_of_seeds"][str(width)] = values
        details["iou"][str(width)] = _iou_of_classes(train.class_names, of_seeds)
        details["matching"][str(width)] = [matching for _, matching in theirs]
    data = {
        role: {"images": len(images), "classes": images.n_classes, "ignored": images.ignore}
        for role, images in (("train", train), ("test", test))
    }
    return Result("in-context", figures, settings, data, errors, details)


def _iou_of_classes(names: Sequence[str], of_seeds: Sequence[Confusion]) -> dict[str, float | None]:
    """Per cent, means over seeds; None for a class that no test mask shows."""
    ious = [confusion.iou().tolist() for confusion in of_seeds]
    shown = (of_seeds[0].matrix.sum(1) > 0).tolist()
    return {
        name: 100 * statistics.fmean(values) if there else None
        for name, there, *values in zip(names, shown, *ious, strict=True)
    }


PROTOCOL = Protocol(
    name="in-context",
    summary="segmentation by nearest patches of labelled images (Hummingbird), mIoU",
    settings=InContextSettings,
    roles=(
        Role(
            "train", "images with masks that are the memory", several=False, opens=open_segmentation
        ),
        Role("test", "images with masks to segment", several=False, opens=open_segmentation),
    ),
    run=on_sources_of(in_context, "train", "test"),
)
