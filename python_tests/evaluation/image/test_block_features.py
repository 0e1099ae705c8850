from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from franca_fast.evaluation.image.block_features import (
    BlockFeatures,
    InputKind,
    block_features,
    kinds_of,
)
from franca_fast.models import VisionTransformer


@pytest.fixture
def deep() -> VisionTransformer:
    model = VisionTransformer(
        img_size=28,
        patch_size=7,
        embed_dim=16,
        depth=5,
        num_heads=2,
        num_register_tokens=2,
        layerscale=0.5,
    )
    return model.eval()


class Tokens(nn.Module):
    """An encoder with DINOv2's dictionary of tokens and no access to its blocks."""

    patch_size = 7

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        return self.model.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def block_outputs(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """The normalised tokens of each block, one block after the other."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, args, out: outputs.append(model.norm(out)))
        for block in model.blocks
    ]
    model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return outputs


@torch.no_grad()
def test_parts_are_the_tokens_of_the_blocks_earlier_ones_first(deep: VisionTransformer) -> None:
    images = torch.randn(3, 3, 28, 28)
    kinds = [InputKind(1, False), InputKind(4, True)]
    features, tokens = block_features(deep, images, kinds), block_outputs(deep, images)
    for m in (16, 6):
        cls_tokens = [tokens[i][:, 0, :m] for i in range(1, 5)]
        mean = tokens[4][:, 3:, :m].mean(1)
        torch.testing.assert_close(features.input_of(kinds[0], m), cls_tokens[3])
        torch.testing.assert_close(
            features.input_of(kinds[1], m), torch.cat([*cls_tokens, mean], 1)
        )


@torch.no_grad()
@pytest.mark.parametrize("patch_mean", [False, True])
def test_tokens_of_the_last_layer_alone(deep: VisionTransformer, patch_mean: bool) -> None:
    images, kind = torch.randn(3, 3, 28, 28), InputKind(1, patch_mean)
    expected = block_features(deep, images, [kind]).input_of(kind, 9)
    found = block_features(Tokens(deep), images, [kind]).input_of(kind, 9)
    torch.testing.assert_close(found, expected)


def test_kinds_are_those_that_an_encoder_can_give(deep: VisionTransformer) -> None:
    def kinds(encoder: object) -> list[tuple[int, bool]]:
        return [tuple(kind) for kind in kinds_of(encoder, (1, 4), (False, True))[0]]

    assert kinds(deep) == [(1, False), (1, True), (4, False), (4, True)]
    assert kinds(Tokens(deep)) == [(1, False), (1, True)]
    assert kinds(lambda images: images.mean((2, 3))) == [(1, False)]


def test_what_cannot_be_had_is_said(deep: VisionTransformer) -> None:
    assert kinds_of(deep, (1, 4), (False, True))[1] == []
    assert kinds_of(deep, (1, 6), (False,)) == (
        [InputKind(1, False)],
        ["no heads on more than 5 blocks: the encoder has 5"],
    )
    assert kinds_of(Tokens(deep), (1, 4), (True,))[1] == [
        "no heads on more than 1 block: the encoder gives the tokens of the last one alone"
    ]
    assert len(kinds_of(lambda images: images, (1, 4), (True,))[1]) == 2


def test_a_method_of_another_form_is_not_taken_for_dinov2s() -> None:
    class Other(nn.Module):
        def get_intermediate_layers(self, x: Tensor, n: int, return_prefix_tokens: bool) -> None:
            raise AssertionError

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    kinds, _ = kinds_of(Other(), (1, 4), (False,))
    assert block_features(Other(), torch.ones(2, 3, 4, 4), kinds).cls_tokens.shape == (2, 1, 3)


def test_a_kind_in_words() -> None:
    assert str(InputKind(1, False)) == "CLS of the last block"
    assert str(InputKind(4, True)) == "CLS of the last 4 blocks and mean of the patches"


def test_inputs_are_cut_part_by_part() -> None:
    features = BlockFeatures(torch.arange(12.0).reshape(1, 3, 4), torch.arange(4.0)[None] + 100)
    assert features.input_of(InputKind(2, True), 2).tolist() == [[4, 5, 8, 9, 100, 101]]
