"""Linear segmentation of frozen patch tokens, with the recipes of Franca and of DINOv3."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from franca_fast.data.numbered_images import shuffled_without_end
from franca_fast.data.segmentation import open_segmentation
from franca_fast.data.segmented_images import Mask, SegmentedImages, matched_masks
from franca_fast.data.threads import in_order
from franca_fast.data.transform import normalised
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.patch_grids import check_patch_size
from franca_fast.evaluation.dense.probe.crops import (
    CropSize,
    Targets,
    random_crop,
    scaled_size,
)
from franca_fast.evaluation.dense.probe.heads import (
    SegmentationHeads,
    dropout,
    train_step,
)
from franca_fast.evaluation.dense.probe.recipes import (
    LinearSegmentationSettings,
    SegmentationRecipe,
)
from franca_fast.evaluation.dense.probe.sliding_window import (
    Windows,
    upsampled_argmax,
    windows_over,
)
from franca_fast.evaluation.dense.segmentation_score import Confusion
from franca_fast.evaluation.encoders import Encoder, inference, patch_token_grid
from franca_fast.evaluation.image.linear_heads import cosine
from franca_fast.evaluation.protocol import Protocol, Reading, Role, check_dims, on_sources_of
from franca_fast.evaluation.result import Result


def linear_segmentation(
    encoder: Encoder,
    train: str | os.PathLike[str],
    test: str | os.PathLike[str],
    settings: LinearSegmentationSettings | None = None,
    *,
    dims: Sequence[int] | None = None,
    reading: Reading | None = None,
) -> Result:
    """Mean intersection over union of a linear head on the last layer's patch tokens.

    Batch normalisation and a 1x1 convolution are trained on random crops of scaled and mirrored
    images; the loss is the cross entropy of logits upsampled bilinearly to pixels. Test images are
    scaled so that their shorter side is the crop; the logits of windows are averaged where they
    overlap and upsampled bilinearly to the image's own size.

    Args:
        encoder: with patch tokens (see `patch_token_grid`), on its device.
        train: images with masks, as `open_segmentation` takes them.
        test: images with masks whose classes `train` has.
        settings: the protocol's where None.
        dims: values of m; a head is trained on the first m channels for each, all at once. None
            takes the full width.
        reading: how images are read; `batch_size` is that of the network.

    Returns:
        the figure "mIoU" in per cent, over the classes that the test masks show; in `details` the
        recipe as it was used, and for each width the IoU of each class, None for those that neither
        masks nor predictions have, and the last losses.

    Raises:
        InputError: no patch tokens, settings that do not fit, masks that cannot be used, or a loss
            that is not finite.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=14, img_size=112)
        >>> small = LinearSegmentationSettings(iterations=2, batch_size=2, crop=56)
        >>> scenes = "FashionScenes:split=TEST"
        >>> linear_segmentation(model, scenes, scenes, small, dims=(8, 128)).figures.keys()
        dict_keys([8, 128])
    """
    settings, reading = settings or LinearSegmentationSettings(), reading or Reading()
    learned = open_segmentation(train)
    tested = matched_masks(learned, open_segmentation(test))
    patch_size = check_patch_size(encoder, getattr(encoder, "patch_size", 1))
    recipe = settings.resolved(len(learned), patch_size)
    check_patch_size(encoder, recipe.crop)
    targets = Targets(learned.n_classes, learned.ignore)
    heads, losses = _train(encoder, learned, targets, recipe, settings, dims, reading)
    confusions = _test(encoder, tested, targets, heads, recipe, reading)
    details = {
        str(m): {
            "IoU": [None if math.isnan(value) else value for value in confusion.iou().tolist()],
            "loss": losses[m],
        }
        for m, confusion in confusions.items()
    }
    return Result(
        "linear-segmentation",
        {m: {"mIoU": confusion.miou()} for m, confusion in confusions.items()},
        settings,
        {role: _described(data) for role, data in (("train", learned), ("test", tested))},
        details={"recipe": asdict(recipe), "class_names": learned.class_names, **details},
    )


def _described(data: SegmentedImages) -> dict[str, object]:
    return {"images": len(data), "classes": data.n_classes, "ignore": data.ignore}


def _factor(step: int, recipe: SegmentationRecipe) -> float:
    """The share of the learning rate in a step."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return cosine(step - recipe.warm_up, max(1, recipe.iterations - recipe.warm_up))


def _optimizer(heads: SegmentationHeads, recipe: SegmentationRecipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(heads.parameters(), rate, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(heads.parameters(), rate, weight_decay=decay)


def _grids(encoder: Encoder, images: Tensor, reading: Reading, device: torch.device) -> Tensor:
    """Patch tokens of images, so many at once as `reading` says."""
    some = images.split(reading.batch_size)
    grids = torch.cat([patch_token_grid(encoder, part.to(device)) for part in some])
    if not bool(grids.isfinite().all()):
        raise InputError("features: not all finite; accepted: a model whose features are finite")
    return grids


def _train(
    encoder: Encoder,
    data: SegmentedImages,
    targets: Targets,
    recipe: SegmentationRecipe,
    settings: LinearSegmentationSettings,
    dims: Sequence[int] | None,
    reading: Reading,
) -> tuple[SegmentationHeads, dict[int, float]]:
    """The heads, and the last loss of each width."""
    crop = CropSize(recipe.crop, *settings.resize)
    heads: SegmentationHeads | None = None

    def prepare(item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        place, i = item
        image, mask = data.load(i)
        return random_crop(image, targets.of(mask), crop, settings.seed, place)

    numbers = enumerate(shuffled_without_end(len(data), settings.seed))
    ahead = recipe.batch_size + reading.num_workers
    with (
        closing(in_order(prepare, numbers, reading.num_workers, ahead)) as stream,
        inference(encoder, reading.precision) as device,
        tqdm(total=recipe.iterations, disable=None if reading.progress else True) as bar,
    ):
        for step in range(recipe.iterations):
            images, labels = zip(*islice(stream, recipe.batch_size), strict=True)
            grids = _grids(encoder, torch.stack(images), reading, device)
            with torch.autocast(device.type, enabled=False):
                if heads is None:
                    chosen = check_dims(dims, grids.shape[-1])
                    heads = SegmentationHeads(
                        grids.shape[-1], chosen, len(targets.classes), settings.seed
                    ).to(device)
                    optimizer = _optimizer(heads, recipe)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * _factor(step, recipe)
                kept = None
                if recipe.dropout:
                    shape = (len(grids), grids.shape[-1])
                    kept = dropout(*shape, recipe.dropout, settings.seed, step).to(device)
                losses = train_step(
                    heads, optimizer, grids, torch.stack(labels).to(device).long(), kept
                )
            bar.update()
    assert heads is not None
    if not bool(losses.isfinite().all()):
        raise InputError("learning_rate: the loss is not finite; accepted: a lower one")
    return heads.eval(), dict(zip(heads.dims, losses.tolist(), strict=True))


@torch.no_grad()
def _test(
    encoder: Encoder,
    data: SegmentedImages,
    targets: Targets,
    heads: SegmentationHeads,
    recipe: SegmentationRecipe,
    reading: Reading,
) -> dict[int, Confusion]:
    """The confusion of each width."""

    def prepare(i: int) -> tuple[Windows, Tensor, Mask]:
        image, mask = data.load(i)
        size = scaled_size(image.size, recipe.crop)
        pixels = normalised(image.resize(size, Image.Resampling.BICUBIC))
        return windows_over((size[1], size[0]), recipe.crop, recipe.stride), pixels, mask

    confusions = {m: Confusion(data.n_classes, data.ignore) for m in heads.dims}
    # Windows of several images go through the network together; most photographs have two.
    at_once = max(1, reading.batch_size // 2)
    ahead = at_once + reading.num_workers
    with (
        closing(in_order(prepare, range(len(data)), reading.num_workers, ahead)) as stream,
        inference(encoder, reading.precision) as device,
        tqdm(total=len(data), disable=None if reading.progress else True) as bar,
    ):
        classes = torch.tensor(targets.classes, device=device)
        while batch := list(islice(stream, at_once)):
            cut = [windows.cut(pixels) for windows, pixels, _ in batch]
            grids = _grids(encoder, torch.cat(cut), reading, device)
            with torch.autocast(device.type, enabled=False):
                for m, logits in zip(heads.dims, heads(grids), strict=True):
                    parts = logits.split([len(part) for part in cut])
                    for (windows, _, mask), own in zip(batch, parts, strict=True):
                        predicted = upsampled_argmax(windows.averaged(own), mask.shape)
                        confusions[m].add(torch.from_numpy(mask), classes[predicted])
            bar.update(len(batch))
    for confusion in confusions.values():
        confusion.check_any()
    return confusions


PROTOCOL = Protocol(
    "linear-segmentation",
    "batch normalisation and a 1x1 convolution on patch tokens, mIoU of sliding windows",
    LinearSegmentationSettings,
    (
        Role("train", "images with masks to train on", several=False, opens=open_segmentation),
        Role("test", "images with masks to test on", several=False, opens=open_segmentation),
    ),
    on_sources_of(linear_segmentation, "train", "test"),
)
