"""Pictures of patch tokens: their three principal components as red, green and blue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from franca_fast.data import CropSettings, eval_transform, open_images
from franca_fast.data.decoding import MAX_IMAGE_PIXELS
from franca_fast.errors import InputError, OutputError, error_line
from franca_fast.evaluation.encoders import (
    Encoder,
    image_size_of,
    inference,
    patch_token_grid,
    precision_of,
)
from franca_fast.evaluation.features import Source, check_any
from franca_fast.evaluation.pictures import check_can_draw, save_png, sheet
from franca_fast.files import check_folder
from franca_fast.paths import longest_name, shortened
from franca_fast.spelling import spell

PCA_TITLE = "Three principal components of patch tokens as red, green and blue"
_COLOUR_QUANTILES = (0.01, 0.99)  # what maps to 0 and 255; the rest of the range saturates


def visualize_pca(
    model: Encoder,
    images: Source,
    output: str | os.PathLike[str],
    *,
    img_size: int | None = None,
    limit: int = 16,
    overwrite: bool = False,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    levels: str = "full",
    precision: str = "fp32",
) -> list[Path]:
    """Writes one picture per image: the image, and beside it its patch tokens as colours.

    The components are those of all patch tokens of all the images together, so equal colours mean
    similar tokens, across images too.

    Args:
        model: an encoder with patch tokens (see `patch_token_grid`).
        images: image files, folders or shards, as `franca_fast.data.open_images` takes them.
        output: folder for the pictures; it must be absent or empty.
        img_size: side in pixels to which images are scaled; None takes the model's own.
        limit: number of images at most.
        overwrite: whether the folder may hold files; those of the same name are replaced.
        max_image_pixels: larger images are skipped without decoding them.
        levels: how levels of more than 8 bits become 0 to 255: "full", "minmax" or "LOW:HIGH".
        precision: "fp32", "bf16" or "auto", as for `embed`.

    Returns:
        paths of the PNG files, `<index>_<name>.png`.

    Raises:
        InputError: no readable images, a folder in use or that cannot be written, an image size
            that does not fit, patch tokens that are not finite, or matplotlib is not installed.
        OutputError: a picture could not be written after all; says how many there are.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", patch_size=7, img_size=28).eval()
        >>> len(visualize_pca(model, "FashionMNIST:split=TEST", "pca", limit=2))
        2
    """
    check_can_draw()
    folder = check_folder(output, overwrite=overwrite)
    precision = precision_of(model, precision)
    size = image_size_of(model, img_size)
    opened = open_images(images, max_image_pixels=max_image_pixels, levels=levels)
    chosen = list(islice(opened, max(1, limit)))
    check_any(opened, len(chosen), images)
    coloured = pca_pictures(model, [image for _, image, _ in chosen], size, precision)
    paths = []
    for i, ((name, image, _), colours) in enumerate(zip(chosen, coloured, strict=True)):
        path = folder / picture_name(i, name, longest_name(folder))
        pair = {"": [as_seen(image, size), colours]}
        columns = (f"image, {size} × {size} pixels", "{} × {} patches".format(*colours.size))
        try:
            save_png(sheet(pair, PCA_TITLE, columns, cell=3), path)
        except OSError as error:
            what = f"{i} of {len(chosen)} pictures are written"
            kept = folder if i else None
            raise OutputError(f"{error_line(error)}; {what}", error, kept) from error
        paths.append(path)
    return paths


def picture_name(index: int, image: str, n_bytes: int = 255) -> str:
    """The name of an image's picture: the number, which makes it unique, and the image's name.

    What could not be read in a terminal or is no part of a name becomes `_`.

    Args:
        index: of the image.
        image: its name, as the source spells it.
        n_bytes: of the longest name; the image's is cut to that.

    Example:
        >>> picture_name(3, "cats/tom.jpg")
        '003_tom.png'
    """
    number, suffix = f"{index:03d}_", ".png"
    stem = "".join(c if c.isprintable() else "_" for c in spell(Path(image).stem))
    return number + shortened(stem, n_bytes - len(number + suffix)) + suffix


def pca_pictures(
    model: Encoder, images: Sequence[Image.Image], size: int, precision: str = "fp32"
) -> list[Image.Image]:
    """Colours the patches of images by the principal components of all their tokens.

    Args:
        model: an encoder with patch tokens.
        images: RGB images of any sizes.
        size: side in pixels to which images are scaled before the model sees them.
        precision: see `precision_of`.

    Returns:
        one RGB image per input, one pixel per patch.
    """
    transform = eval_transform(size)
    with inference(model, precision) as device:
        grids = torch.cat(
            [patch_token_grid(model, transform(i).unsqueeze(0).to(device)).cpu() for i in images]
        )
    return [Image.fromarray(colours.numpy()) for colours in pca_colours(grids)]


def as_seen(image: Image.Image, size: int) -> Image.Image:
    """The square [size, size] of an image that `eval_transform` gives the model, as a picture."""
    return as_picture(eval_transform(size)(image))


def as_picture(pixels: Tensor) -> Image.Image:
    """The picture that was normalised to float32 [3, H, W] for the model."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CropSettings.mean, CropSettings.std))
    pixels = (pixels.cpu() * std + mean).mul(255).round().clamp(0, 255)
    return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())


def pca_colours(tokens: Tensor) -> Tensor:
    """Maps tokens to colours by their three principal components.

    The covariance is taken over all tokens in float64. A component's sign, which is arbitrary, is
    chosen so that its largest entry is positive; with fewer than three dimensions the remaining
    colours are 0.

    Args:
        tokens: [N, H, W, d].

    Returns:
        uint8 [N, H, W, 3]; each colour spans the 1st to the 99th percentile of its component.

    Raises:
        InputError: tokens that are not finite.

    Example:
        >>> pca_colours(torch.randn(2, 4, 4, 8)).shape
        torch.Size([2, 4, 4, 3])
    """
    finite = torch.isfinite(tokens).flatten(1).all(1)
    if not finite.all():
        raise InputError(
            f"patch tokens: not finite for {len(finite) - int(finite.sum())} of {len(finite)} "
            "images; accepted: a model whose features are finite"
        )
    flat = tokens.reshape(-1, tokens.shape[-1]).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, -3:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    components = flat @ (vectors * largest.sign())
    low, high = (_row_quantile(components, share) for share in _COLOUR_QUANTILES)
    scaled = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colours = scaled.new_zeros(len(flat), 3)
    colours[:, : scaled.shape[1]] = scaled
    return (colours * 255).round().to(torch.uint8).reshape(*tokens.shape[:-1], 3)


def _row_quantile(values: Tensor, share: float) -> Tensor:
    """The value of each column below which `share` of the rows lie (torch.quantile has a limit)."""
    return values.kthvalue(1 + round(share * (len(values) - 1)), dim=0).values
