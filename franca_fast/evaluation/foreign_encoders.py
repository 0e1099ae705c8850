"""Vision transformers of other libraries behind the interface of our own."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.data.settings import CropSettings
from franca_fast.errors import InputError

_CHANNELS = 3
_LONGEST = 300  # letters of what another library says


@dataclass(frozen=True)
class Anatomy:
    """Where things are in a foreign vision transformer.

    Attributes:
        name: what messages call it.
        patch_size: side of a patch in pixels.
        embed_dim: width d of the tokens.
        img_size: height and width in pixels that it was made for.
        other_sizes: whether it takes other multiples of the patch.
        prefix_tokens: tokens before those of the patches: CLS and registers.
        has_cls: whether the first of them is a CLS token.
        blocks: its blocks, in their order.
        norm: the normalisation after the last block.
        mean, std: of the channels, as it expects images to be normalised.
    """

    name: str
    patch_size: int
    embed_dim: int
    img_size: tuple[int, int]
    other_sizes: bool
    prefix_tokens: int
    has_cls: bool
    blocks: nn.ModuleList | nn.Sequential
    norm: nn.Module
    mean: Sequence[float] = CropSettings.mean
    std: Sequence[float] = CropSettings.std


class ForeignEncoder(nn.Module, ABC):
    """A vision transformer of another library, used as `VisionTransformer` is.

    Tokens are those that the library itself computes. Images come normalised with ImageNet's mean
    and standard deviation, as for our own networks, and are converted when the network was made
    for others. A network without a CLS token gives the mean of its patch tokens in its place.

    Subclasses say how tokens and keys are computed.

    Args:
        model: the library's network; shared, not copied.
        anatomy: where things are in it.

    Attributes:
        model, anatomy: as given.
        name, patch_size, embed_dim: of the anatomy.
        depth: number of blocks.
        config: {"img_size": side of the images it was made for}.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        self.model, self.anatomy, self.name = model, anatomy, anatomy.name
        self.patch_size, self.embed_dim = anatomy.patch_size, anatomy.embed_dim
        self.depth = len(anatomy.blocks)
        self.config = {"img_size": min(anatomy.img_size)}
        parameter = next(model.parameters(), None)
        device = None if parameter is None else parameter.device
        for name, value in zip(("scale", "shift"), _conversion(anatomy), strict=True):
            moved = None if value is None else value.to(device)
            self.register_buffer(name, moved)  # among the weights, whose checksum tells features
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """CLS token of each image: [B, 3, H, W] -> [B, d]."""
        return self.forward_features(images)["x_norm_clstoken"]

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens of images of one size.

        Args:
            images: [B, 3, H, W], normalised as for our own networks.

        Returns:
            `x_norm_clstoken` [B, d], the mean of the patch tokens where there is no CLS token;
            `x_norm_regtokens` [B, r, d], other tokens before the patches;
            `x_norm_patchtokens` [B, H / patch * W / patch, d] in row-major order.

        Raises:
            InputError: no images of three channels, or of a size that the network does not take.
        """
        tokens = self._tokens(self._prepared(images))
        cls_token, others, patches = self._split(tokens, images)
        return {
            "x_norm_clstoken": cls_token,
            "x_norm_regtokens": others,
            "x_norm_patchtokens": patches,
        }

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Patch tokens of several blocks, as `VisionTransformer.get_intermediate_layers`.

        Args:
            x: images [B, 3, H, W].
            n: the last n blocks, or the indices of blocks.
            reshape: give [B, d, H / patch, W / patch] instead of [B, n, d].
            return_class_token: give pairs (patch tokens, CLS token [B, d]).
            norm: apply the network's last normalisation.

        Returns:
            a tuple with one entry for each block.
        """
        wanted = range(self.depth - n, self.depth) if isinstance(n, int) else sorted(set(n))
        if not len(wanted) or wanted[0] < 0 or wanted[-1] >= self.depth:
            raise InputError(f"n: {n}; accepted: 1..{self.depth}, or indices 0..{self.depth - 1}")
        images = self._prepared(x)
        with _outputs_of([self.anatomy.blocks[i] for i in wanted]) as outputs:
            self._tokens(images)
        entries: list[Any] = []
        for tokens in outputs:
            normed = self.anatomy.norm(tokens) if norm else tokens
            cls_token, _, patches = self._split(normed, x)
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, self._grid(x))
            entries.append((patches, cls_token) if return_class_token else patches)
        return tuple(entries)

    def last_keys(self, images: Tensor) -> Tensor:
        """Keys of the patches in the attention of the last block, all heads side by side.

        They are taken before rotary positions are applied.

        Args:
            images: [B, 3, H, W].

        Returns:
            float32 [B, H / patch, W / patch, d].

        Raises:
            InputError: the network does not show its keys.
        """
        prepared = self._prepared(images)
        module = self._key_module()
        with _outputs_of([] if module is None else [module]) as outputs:
            self._tokens(prepared)
        if not outputs:
            raise InputError(
                f"model: '{self.name}' does not show its keys; accepted: one that does"
            )
        keys = self._split(self._keys(outputs[-1]), images)[2]
        return keys.float().unflatten(1, self._grid(images))

    @abstractmethod
    def _tokens(self, images: Tensor) -> Tensor:
        """All tokens [B, prefix + patches, d] of images as the network expects them."""

    @abstractmethod
    def _key_module(self) -> nn.Module | None:
        """The module in the last block whose output holds the keys."""

    def _keys(self, output: Tensor) -> Tensor:
        """Keys [B, tokens, d] in what that module gave."""
        return output

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch_size, images.shape[3] // self.patch_size

    def _prepared(self, images: Tensor) -> Tensor:
        """Checks images and gives them the network's own normalisation."""
        if images.dim() != 4 or images.shape[1] != _CHANNELS or not images.is_floating_point():
            raise InputError(
                f"images: {images.dtype} {tuple(images.shape)}; accepted: [batch, {_CHANNELS}, "
                "height, width] of a floating dtype, normalised (see "
                "franca_fast.data.eval_transform)"
            )
        given = (images.shape[2], images.shape[3])
        own = self.anatomy.img_size
        if not self.anatomy.other_sizes and given != own:
            raise InputError(
                f"image: {given[0]} x {given[1]} pixels, for '{self.name}'; accepted: "
                f"{own[0]} x {own[1]}, the size that it was built for (img_size of load_encoder)"
            )
        if given[0] % self.patch_size or given[1] % self.patch_size:
            raise InputError(
                f"image: {given[0]} x {given[1]} pixels; accepted: multiples of the patch size "
                f"{self.patch_size}"
            )
        if self.scale is None or self.shift is None:
            return images
        return images * self.scale + self.shift

    def _split(self, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CLS token [B, d], other prefix tokens [B, r, d] and patch tokens [B, n, d]."""
        prefix, has_cls = self.anatomy.prefix_tokens, self.anatomy.has_cls
        rows, columns = self._grid(images)
        expected = (len(images), prefix + rows * columns)
        if tokens.dim() != 3 or tokens.shape[:2] != expected:
            raise InputError(
                f"model: '{self.name}' gave {tuple(tokens.shape)} for {rows} x {columns} patches; "
                f"accepted: ({expected[0]}, {expected[1]}, d), a vision transformer's tokens"
            )
        patches = tokens[:, prefix:]
        cls_token = tokens[:, 0] if has_cls else patches.float().mean(1).to(patches.dtype)
        return cls_token, tokens[:, int(has_cls) : prefix], patches


def library(name: str, model: str) -> Any:
    """Imports another library that a model needs.

    Raises:
        InputError: it is not installed; says how it can be.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"model: '{model}' needs {name}, which is not installed; pip install {name} brings it"
        ) from error


def one_line(error: Exception) -> str:
    r"""What another library says of an error, or the kind of it, as the end of one line.

    Example:
        >>> one_line(RuntimeError("Error in loading:\n\tMissing key: norm.weight"))
        'Error in loading: Missing key: norm.weight'
    """
    return shorten(str(error), _LONGEST, placeholder=" ...") or type(error).__name__


def _conversion(anatomy: Anatomy) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(scale, shift) [3, 1, 1] from our normalisation to the network's; None where it is ours.

    With pixels p in 0..1, x = (p - m) / s is ours and (p - m') / s' = x s / s' + (m - m') / s'.
    """
    means = torch.tensor([CropSettings.mean, anatomy.mean], dtype=torch.float64)
    stds = torch.tensor([CropSettings.std, anatomy.std], dtype=torch.float64)
    if torch.equal(means[0], means[1]) and torch.equal(stds[0], stds[1]):
        return None, None
    scale, shift = stds[0] / stds[1], (means[0] - means[1]) / stds[1]
    return scale.float()[:, None, None], shift.float()[:, None, None]


@contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what modules give while the block runs, in the order in which they run."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
