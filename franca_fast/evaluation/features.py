"""Features of images: of folders, files and shards, into memory and into files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from franca_fast.data import Images, eval_transform, open_images
from franca_fast.data.classes import join_labels
from franca_fast.data.decoding import MAX_IMAGE_PIXELS
from franca_fast.data.samples import Label
from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings, check_output
from franca_fast.evaluation.encoders import (
    Encoder,
    as_encoder,
    check_pooling,
    image_size_of,
    inference,
    pooled_features,
    precision_of,
)
from franca_fast.files import save_or_keep
from franca_fast.spelling import spell

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def embed(
    model: Encoder | str | os.PathLike[str],
    source: Source,
    *,
    output: str | os.PathLike[str] | None = None,
    img_size: int | None = None,
    resize: int | None = None,
    batch_size: int = 64,
    pooling: str = "cls",
    num_workers: int = 2,
    overwrite: bool = False,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
    precision: str = "fp32",
) -> Embeddings:
    """Computes one feature vector per image, in the source's order.

    Images are scaled and cropped to a square and normalised as in training. Files that cannot be
    read are left out, and counted in the result.

    Args:
        model: an encoder (a module with `forward_features`, or any callable [B, 3, S, S] ->
            [B, d]), used on the device it is on; or what `load_encoder` takes.
        source: image files, folders (their sub-folders are classes) or shards; or several.
        output: also write `.npz`, `.parquet` or `.safetensors` (see `Embeddings.save`).
        img_size: side in pixels; None takes the model's own.
        resize: pixels that the shorter side gets before the middle is cut out; None takes
            `img_size`. DINOv2's classification protocols use 256 for 224.
        batch_size: images at once; changes nothing but speed.
        pooling: "cls", "patch_mean" or "cls_patch_mean".
        num_workers: threads that prepare images.
        overwrite: whether `output` may exist.
        max_image_pixels: larger images are skipped without decoding them.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".
        precision: "fp32", "bf16", which is faster where the machine multiplies matrices in it, or
            "auto", which is bf16 there alone; features are float32 in any case (see
            `franca_fast.evaluation.encoders.precision_of`).

    Returns:
        names, features (float32 [n, d], on the CPU); labels where the source has them, and the
        names of their classes, joined over all sources; in `facts`, what became of the images, and
        the settings.

    Raises:
        InputError: wrong arguments, an output that cannot be written, a missing source, not one
            readable image in it, or features that are not finite.
        OutputError: writing failed after all; says where the embeddings are kept instead.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_tiny", patch_size=7)
        >>> embed(model, "FashionMNIST:split=TEST", img_size=28).features.shape
        torch.Size([1000, 192])
    """
    if output is not None:
        check_output(output, overwrite=overwrite)
    check_pooling(pooling)
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise InputError(f"{name}: {value}; accepted: {least} or more")
    encoder = as_encoder(model)
    precision = precision_of(encoder, precision)
    size = image_size_of(encoder, img_size)
    opened = open_images(source, max_image_pixels=max_image_pixels, levels=levels)
    # The next batch is prepared while the network is at work on this one.
    prepared = opened.prepared(eval_transform(size, resize), num_workers, batch_size + num_workers)
    names: list[str] = []
    labels: list[Label | None] = []
    parts: list[Tensor] = []
    with inference(encoder, precision) as device:
        while batch := list(islice(prepared, batch_size)):
            images = torch.stack([image for _, image, _ in batch]).to(device)
            features = pooled_features(encoder, images, pooling).cpu()
            names += [name for name, _, _ in batch]
            _check_finite(features, names[-len(batch) :])
            parts.append(features)
            labels += [label for _, _, label in batch]
    check_any(opened, len(names), source)
    numbers, class_names = join_labels(labels, opened.class_names)
    has_labels = bool((numbers >= 0).any())
    embeddings = Embeddings(
        names,
        torch.cat(parts),
        torch.from_numpy(numbers) if has_labels else None,
        dict(opened.skipped),
        class_names if has_labels else [],
        {
            "images": opened.account.as_dict(),
            "source": [spell(os.fspath(one)) for one in _sources(source)],
            "img_size": size,
            "resize": size if resize is None else resize,
            "pooling": pooling,
            "precision": precision,
            "levels": levels,
            "max_image_pixels": max_image_pixels,
        },
    )
    if output is not None:
        save_or_keep(output, lambda file: embeddings.save(file, overwrite=overwrite))
    return embeddings


def _sources(source: Source) -> list[str | os.PathLike[str]]:
    return [source] if isinstance(source, (str, os.PathLike)) else list(source)


def _check_finite(features: Tensor, names: list[str]) -> None:
    finite = torch.isfinite(features).all(1)
    if not finite.all():
        bad = names[int(finite.logical_not().nonzero()[0])]
        raise InputError(
            f"features: not finite for {len(names) - int(finite.sum())} of {len(names)} images, "
            f"'{spell(bad)}' first; accepted: a model whose features are finite"
        )


def check_any(images: Images, used: int, source: Source) -> None:
    """Refuses a source none of whose images could be read.

    Raises:
        InputError: says what was wrong with them.
    """
    if used == 0:
        named = ", ".join(f"'{spell(os.fspath(one))}'" for one in _sources(source))
        why = images.skipped.summary() or images.account.left_out.summary() or "empty"
        raise InputError(f"no readable image in {named}: {why}")
