from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.evaluation.dense.attention_keys import last_keys
from franca_fast.models import ProjectedEncoder, RemovePositions, VisionTransformer


@pytest.mark.parametrize("registers", [0, 3])
def test_equals_keys_computed_block_by_block(registers: int) -> None:
    vit = VisionTransformer(
        img_size=28,
        patch_size=7,
        embed_dim=32,
        depth=3,
        num_heads=4,
        num_register_tokens=registers,
    ).eval()
    images = torch.randn(2, 3, 28, 35)
    with torch.no_grad():
        found = last_keys(vit, images)
        # The input of the last block is what the block before gives, without the final norm.
        tokens = vit._tokens(images, None)
        for block in vit.blocks[:-1]:
            tokens = block(tokens)
        last = vit.blocks[-1]
        layer = last.attn.qkv
        keys = last.norm1(tokens) @ layer.weight[32:64].T + layer.bias[32:64]
    expected = keys[:, 1 + registers :].reshape(2, 4, 5, 32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not layer._forward_hooks


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x)[..., :4]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class Foreign(nn.Module):
    """Blocks within groups, as DINOv2 has them under FSDP, and no forward_features."""

    def __init__(self, groups: int = 2, times: int = 1) -> None:
        super().__init__()
        self.patch_size, self.times = 2, times
        self.groups = nn.ModuleList(nn.Sequential(Block(), Block()) for _ in range(groups))

    def forward(self, images: Tensor) -> Tensor:
        tokens = nn.functional.unfold(images, 2, stride=2).transpose(1, 2)[..., :4]
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        for _ in range(self.times):
            for group in self.groups:
                tokens = group(tokens)
        return tokens[:, 0]


def test_takes_the_last_layer_of_any_module() -> None:
    model = Foreign().eval()
    images = torch.randn(3, 3, 4, 6)
    outputs: list[Tensor] = []
    layer = model.groups[1][1].attn.qkv
    layer.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.no_grad():
        found = last_keys(model, images)
    assert torch.equal(found, outputs[0][:, 1:, 4:8].reshape(3, 2, 3, 4))


def test_the_removal_of_positions_changes_no_keys() -> None:
    model = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=2, num_heads=2).eval()
    images = torch.randn(2, 3, 28, 28)
    removal = RemovePositions(2, 32)
    removal.read.normal_(), removal.write.normal_()
    projected = ProjectedEncoder(model, removal)
    with torch.no_grad():
        assert torch.equal(last_keys(projected, images), last_keys(model, images))


def test_an_encoders_own_method_is_taken() -> None:
    class Own:
        def last_keys(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 2, 2, 5), 3.0, dtype=torch.bfloat16)

    found = last_keys(Own(), torch.zeros(2, 3, 4, 4))  # type: ignore[arg-type]
    assert found.dtype == torch.float32 and found.shape == (2, 2, 2, 5)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (nn.Flatten(), "no keys of attention; accepted: a module whose last block has attn.qkv"),
        (Foreign(groups=0), "no keys of attention"),
        (Foreign(times=2), "once a batch"),
        (lambda images: images, "no keys of attention"),
    ],
)
def test_encoders_without_keys_are_refused(encoder: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        last_keys(encoder, torch.zeros(1, 3, 4, 4))


def test_keys_of_another_form_are_refused() -> None:
    class Flat:
        def last_keys(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 5)

    with pytest.raises(InputError, match=r"last_keys: \(1, 5\); accepted: \[1, h, w, d\]"):
        last_keys(Flat(), torch.zeros(1, 3, 4, 4))  # type: ignore[arg-type]
