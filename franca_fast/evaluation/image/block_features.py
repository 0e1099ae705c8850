"""Inputs of linear classifiers: the CLS tokens of the last blocks, and the mean of the patches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast.evaluation.encoders import Encoder, pooled_features


class InputKind(NamedTuple):
    """What a classifier sees of an image.

    Attributes:
        blocks: the CLS tokens of so many last blocks.
        patch_mean: whether also the mean of the last block's patch tokens.
    """

    blocks: int
    patch_mean: bool

    def __str__(self) -> str:
        blocks = "last block" if self.blocks == 1 else f"last {self.blocks} blocks"
        return f"CLS of the {blocks}{' and mean of the patches' if self.patch_mean else ''}"


class BlockFeatures(NamedTuple):
    """Features of a batch of images.

    Attributes:
        cls_tokens: float32 [B, k, d], of the last k blocks, the last one last.
        patch_mean: float32 [B, d] of the last block; None where the encoder has no patch tokens.
    """

    cls_tokens: Tensor
    patch_mean: Tensor | None

    def input_of(self, kind: InputKind, width: int) -> Tensor:
        """The input of a kind of classifier.

        Every part is cut to its first entries; the parts stand as in DINOv2: CLS tokens from the
        earlier blocks to the last, then the mean of the patches.

        Args:
            kind: what it is made of.
            width: m, how many entries of each part are taken.

        Returns:
            float32 [B, m (blocks + patch_mean)].

        Example:
            >>> cls_tokens, mean = torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[5.0, 6]])
            >>> features = BlockFeatures(cls_tokens, mean)
            >>> features.input_of(InputKind(2, True), 1)
            tensor([[1., 3., 5.]])
        """
        parts = self.cls_tokens[:, self.cls_tokens.shape[1] - kind.blocks :, :width].flatten(1)
        if not kind.patch_mean:
            return parts
        assert self.patch_mean is not None
        return torch.cat([parts, self.patch_mean[:, :width]], 1)


def has_blocks(encoder: Encoder) -> bool:
    """Whether an encoder gives the tokens of its blocks, as DINOv2's `get_intermediate_layers`."""
    method = getattr(encoder, "get_intermediate_layers", None)
    return method is not None and "return_class_token" in inspect.signature(method).parameters


def kinds_of(
    encoder: Encoder, blocks: Sequence[int], patch_mean: Sequence[bool]
) -> tuple[list[InputKind], list[str]]:
    """The kinds of input that an encoder can give.

    Args:
        encoder: any.
        blocks: numbers of last blocks that are wanted.
        patch_mean: whether inputs without and with the mean of the patches are wanted.

    Returns:
        the kinds; and why others that are wanted cannot be had, in words.

    Example:
        >>> kinds_of(torch.nn.Flatten(), [1, 4], [False, True])[0]
        [InputKind(blocks=1, patch_mean=False)]
    """
    wanted = [InputKind(n, mean) for n in blocks for mean in patch_mean]
    depth: Any = getattr(encoder, "depth", getattr(encoder, "n_blocks", None))
    most = 1 if not has_blocks(encoder) else depth if isinstance(depth, int) else max(blocks)
    has_patches = has_blocks(encoder) or hasattr(encoder, "forward_features")
    remarks = []
    if max(blocks) > most:
        why = f"has {most}" if has_blocks(encoder) else "gives the tokens of the last one alone"
        remarks.append(f"no heads on more than {most} block{'s' * (most > 1)}: the encoder {why}")
    if any(patch_mean) and not has_patches:
        remarks.append("no heads on the mean of the patches: the encoder gives no patch tokens")
    kinds = [k for k in wanted if k.blocks <= most and (has_patches or not k.patch_mean)]
    return kinds, remarks


def block_features(encoder: Encoder, images: Tensor, kinds: Sequence[InputKind]) -> BlockFeatures:
    """Features of a batch of images, as much as some kinds of input need.

    Args:
        encoder: one that can give these kinds, see `kinds_of`.
        images: [B, 3, S, S] on the encoder's device.
        kinds: at least one.
    """
    if has_blocks(encoder):
        blocks = max(kind.blocks for kind in kinds)
        layers = encoder.get_intermediate_layers(  # type: ignore[attr-defined]
            images, blocks, return_class_token=True
        )
        cls_tokens = torch.stack([cls_token for _, cls_token in layers], 1).float()
        return BlockFeatures(cls_tokens, layers[-1][0].float().mean(1))
    if any(kind.patch_mean for kind in kinds):
        both = pooled_features(encoder, images, "cls_patch_mean")
        cls_token, patch_mean = both.chunk(2, 1)
        return BlockFeatures(cls_token[:, None], patch_mean)
    return BlockFeatures(pooled_features(encoder, images, "cls")[:, None], None)
