"""Linear classification of frozen features, DINOv2's protocol (arXiv 2304.07193)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from franca_fast.data import eval_transform, open_source
from franca_fast.data.numbered_images import (
    random_resized_crop,
    rgb,
    shuffled_without_end,
)
from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder, inference
from franca_fast.evaluation.image.block_features import (
    BlockFeatures,
    InputKind,
    block_features,
    kinds_of,
)
from franca_fast.evaluation.image.embedded import (
    PROTOCOL_RESIZE,
    PROTOCOL_SIZE,
    protocol_size,
)
from franca_fast.evaluation.image.labelled_sets import LabelledSet, open_sets
from franca_fast.evaluation.image.linear_heads import HeadGrid, cosine
from franca_fast.evaluation.protocol import Protocol, Reading, Role, Sources, check_dims
from franca_fast.evaluation.result import Result

_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_PATCH_MEANS = {"no": (False,), "yes": (True,), "both": (False, True)}
_TOP = 5


@dataclass(frozen=True)
class LinearSettings:
    """Settings of `linear`; the defaults are DINOv2's.

    Raises:
        InputError: a value outside its range.
    """

    epochs: int = 10  # of `epoch_length` steps each
    epoch_length: int = 1250  # steps
    batch_size: int = 128  # images of a step
    learning_rates: tuple[float, ...] = _RATES  # for 256 images; multiplied by batch_size / 256
    blocks: tuple[int, ...] = (1, 4)  # CLS tokens of so many last blocks
    patch_mean: str = "both"  # inputs with the mean of the patches: "no", "yes" or "both"
    momentum: float = 0.9  # of SGD; there is no weight decay
    crop_scale: tuple[float, ...] = (0.08, 1.0)  # share of the image in a training crop
    img_size: int | None = None  # side, pixels; None is 224, or the encoder's own if smaller
    resize: int | None = None  # shorter side of a test image; None is 256 for 224 pixels
    class_list: str | None = None  # a file with a name a line: classes that tests number 0, 1, ...
    seed: int = 0  # of the weights, the order of the images and the crops

    def __post_init__(self) -> None:
        for name in ("epochs", "epoch_length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; accepted: 1 or more")
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise InputError(f"learning_rates: {self.learning_rates}; accepted: positive numbers")
        if not self.blocks or min(self.blocks) < 1:
            raise InputError(f"blocks: {self.blocks}; accepted: numbers of blocks, each 1 or more")
        if self.patch_mean not in _PATCH_MEANS:
            raise InputError(f"patch_mean: '{self.patch_mean}'; accepted: no, yes or both")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum: {self.momentum}; accepted: 0 <= momentum < 1")
        scale = self.crop_scale
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise InputError(f"crop_scale: {scale}; accepted: two shares, 0 < least <= most <= 1")


class _Accuracies(NamedTuple):
    """Of all heads of one width, per cent, float64 [heads]; NaN for those that are not finite."""

    top_1: Tensor
    top_5: Tensor
    top_1_of_its_classes: Tensor


def linear(
    encoder: Encoder,
    train: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    test: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    settings: LinearSettings | None = None,
    *,
    validation: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    further: Sequence[str | os.PathLike[str]] = (),
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """Accuracy of linear classifiers on frozen features, trained with augmentation.

    For each width of the features, 13 learning rates x CLS tokens of the last 1 or 4 blocks x
    without or with the mean of the patches: 52 heads, trained at once by SGD on one pass of the
    network over each batch. The head that is best on `validation` counts.

    Args:
        encoder: on its device. Without DINOv2's `get_intermediate_layers`, or with fewer blocks
            than are asked for, the heads that can be had are trained, and the result says so.
        train: labelled images.
        test: labelled images whose classes `train` has.
        settings: the protocol's where None.
        validation: chooses the head; None takes `test`, as DINOv2 does on ImageNet, and the result
            says so.
        further: other test sets for the chosen head; every source is one of its own. Where it lacks
            classes of `train`, the accuracy among its own classes is given besides.
        dims: values of m: every part of an input is cut to its first m entries. None takes the full
            width.
        reading: how images are read.

    Returns:
        figures "top-1" and "top-5" in per cent, for further sets with the set's name before; in
        `details` the chosen heads and the accuracy of each on `validation`.

    Raises:
        InputError: images without labels, classes that `train` lacks, features that are not finite,
            or no head whose weights stay finite.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
        >>> small = LinearSettings(epochs=1, epoch_length=2, batch_size=8)
        >>> shard = "FashionMNIST:split=TEST"
        >>> sorted(linear(model, shard, shard, small).figures[128])
        ['top-1', 'top-5']
    """
    sources: dict[str, Any] = {
        "train": train,
        "test": test,
        "validation": validation,
        "further": list(further),
    }
    given = {
        role: [one] if isinstance(one, (str, os.PathLike)) else list(one)
        for role, one in sources.items()
        if one
    }
    return _run(encoder, given, settings or LinearSettings(), dims, reading or Reading())


def _run(
    encoder: Encoder,
    sources: Mapping[str, Sources],
    settings: LinearSettings,
    dims: Sequence[int] | None,
    reading: Reading,
) -> Result:
    size = protocol_size(encoder, settings.img_size)
    resize = settings.resize
    if resize is None and size == PROTOCOL_SIZE:
        resize = PROTOCOL_RESIZE
    transform = eval_transform(size, resize)  # refuses sizes that do not fit, before the work
    kinds, remarks = kinds_of(encoder, settings.blocks, _PATCH_MEANS[settings.patch_mean])
    if not kinds:
        raise InputError(f"encoder: {'; '.join(remarks)}; accepted: one that gives such tokens")
    train, tests = open_sets(sources, reading.decoding, settings.class_list)
    n_classes = len(train.classes)
    heads = _train(encoder, train, n_classes, kinds, dims, settings, size, reading)
    found = {
        name: _accuracies(encoder, one, heads, transform, reading, name)
        for name, one in tests.items()
    }
    chooser = "validation" if "validation" in tests else "test"
    figures, details = dict[int, dict[str, float]](), dict[str, Any]()
    for width in heads.widths:
        best = _best(found[chooser][width].top_1)
        figures[width] = {
            label: float(value)
            for name, one in tests.items()
            if name != "validation"
            for label, value in _figures(name, one, found[name][width], best, n_classes)
        }
        details[str(width)] = _described(heads, width, found[chooser][width].top_1, best, settings)
    chosen_on = "test, as no validation was given" if chooser == "test" else "validation"
    facts = {name: one.described() for name, one in {"train": train, **tests}.items()}
    details |= {"chosen on": chosen_on, "classes": n_classes, "remarks": remarks}
    details |= {"img_size": size, "resize": resize}
    return Result("linear", figures, settings, facts, details=details)


def _figures(
    name: str, one: LabelledSet, found: _Accuracies, best: int, n_classes: int
) -> list[tuple[str, Tensor]]:
    before = "" if name == "test" else f"{name} "
    figures = [(f"{before}top-1", found.top_1[best]), (f"{before}top-5", found.top_5[best])]
    if before and len(one.classes) < n_classes:
        figures.append((f"{before}top-1 of its classes", found.top_1_of_its_classes[best]))
    return figures


def _described(
    heads: HeadGrid, width: int, top_1: Tensor, best: int, settings: LinearSettings
) -> dict[str, Any]:
    """What a result says of the heads of a width; accuracies are those on the choosing set."""
    names = [(kind, rate) for kind in heads.kinds for rate in settings.learning_rates]
    kind, rate = names[best]
    return {
        "head": {"input": str(kind), "learning rate": rate},
        "heads": len(names),
        "heads that did not stay finite": int(heads.is_finite(width).logical_not().sum()),
        "accuracies": [
            {
                "blocks": kind.blocks,
                "patch_mean": kind.patch_mean,
                "learning rate": rate,
                "top-1": None if math.isnan(value) else value,
            }
            for (kind, rate), value in zip(names, top_1.tolist(), strict=True)
        ],
    }


def _best(top_1: Tensor) -> int:
    """The best head; of equals the first."""
    if bool(top_1.isnan().all()):
        raise InputError("learning_rates: no head stayed finite; accepted: lower ones")
    return int(top_1.nan_to_num(-1.0).argmax())


def _train(
    encoder: Encoder,
    train: LabelledSet,
    n_classes: int,
    kinds: list[InputKind],
    dims: Sequence[int] | None,
    settings: LinearSettings,
    size: int,
    reading: Reading,
) -> HeadGrid:
    scale = (settings.crop_scale[0], settings.crop_scale[1])
    crop = random_resized_crop(size, scale, settings.seed)
    numbers = shuffled_without_end(len(train.images), settings.seed)
    ahead = settings.batch_size + reading.num_workers
    steps, heads = settings.epochs * settings.epoch_length, None
    with (
        closing(train.images.prepared(numbers, crop, reading.num_workers, ahead)) as stream,
        inference(encoder, reading.precision) as device,
        tqdm(total=steps, desc="linear", disable=None if reading.progress else True) as bar,
    ):
        for step in range(steps):
            batch = list(islice(stream, settings.batch_size))
            features = _features(encoder, [image for _, image in batch], kinds, device, reading)
            labels = train.labels[[i for i, _ in batch]].to(device)
            with torch.autocast(device.type, enabled=False):
                if heads is None:
                    chosen = check_dims(dims, features.cls_tokens.shape[2])
                    heads = HeadGrid(
                        kinds,
                        chosen,
                        n_classes,
                        [rate * settings.batch_size / 256 for rate in settings.learning_rates],
                        settings.seed,
                        device,
                        momentum=settings.momentum,
                    )
                heads.step(features, labels, cosine(step, steps))
            bar.update()
    assert heads is not None
    return heads


def _features(
    encoder: Encoder,
    images: list[Tensor],
    kinds: Sequence[InputKind],
    device: torch.device,
    reading: Reading,
) -> BlockFeatures:
    """Features of images, so many at once as `reading` says."""
    parts = [
        block_features(encoder, some.to(device), kinds)
        for some in torch.stack(images).split(reading.batch_size)
    ]
    means = [part.patch_mean for part in parts if part.patch_mean is not None]
    joined = BlockFeatures(
        torch.cat([part.cls_tokens for part in parts]), torch.cat(means) if means else None
    )
    for features in (joined.cls_tokens, joined.patch_mean):
        if features is not None and not bool(features.isfinite().all()):
            raise InputError(
                "features: not all finite; accepted: a model whose features are finite"
            )
    return joined


@torch.no_grad()
def _accuracies(
    encoder: Encoder,
    one: LabelledSet,
    heads: HeadGrid,
    transform: Callable[[Image.Image], Tensor],
    reading: Reading,
    name: str,
) -> dict[int, _Accuracies]:
    """Accuracies of all heads on a set."""
    stream = one.images.prepared(
        range(len(one.images)),
        lambda _, lazy: transform(rgb(lazy.load())),
        reading.num_workers,
        reading.batch_size + reading.num_workers,
    )
    right: dict[int, Tensor] = {}
    n = 0
    with (
        closing(stream),
        inference(encoder, reading.precision) as device,
        tqdm(total=len(one.images), desc=name, disable=None if reading.progress else True) as bar,
    ):
        while batch := list(islice(stream, reading.batch_size)):
            features = _features(
                encoder, [image for _, image in batch], heads.kinds, device, reading
            )
            labels = one.labels[[i for i, _ in batch]].to(device)
            with torch.autocast(device.type, enabled=False):
                ranks = heads.ranks(features, labels, None)
                among = heads.ranks(features, labels, one.classes.to(device))
            for m, rank in ranks.items():
                counts = [(rank == 0).sum(0), (rank < _TOP).sum(0), (among[m] == 0).sum(0)]
                right[m] = right.get(m, 0) + torch.stack(counts)
            n += len(batch)
            bar.update(len(batch))
    shares = {m: 100.0 * counts.cpu().double() / n for m, counts in right.items()}
    for m, share in shares.items():
        share[:, ~heads.is_finite(m)] = torch.nan
    return {m: _Accuracies(*share) for m, share in shares.items()}


PROTOCOL = Protocol(
    "linear",
    "linear classifiers on the CLS and mean patch features, trained with augmentation (DINOv2)",
    LinearSettings,
    (
        Role("train", "labelled images to train on", opens=open_source),
        Role(
            "test",
            "the same; its classes are matched with those of train by name",
            opens=open_source,
        ),
        Role(
            "validation",
            "labelled images on which the head is chosen (the test images)",
            required=False,
            opens=open_source,
        ),
        Role(
            "further",
            "further test sets for the chosen head; each source is a set of its own",
            required=False,
            opens=open_source,
        ),
    ),
    _run,
)
