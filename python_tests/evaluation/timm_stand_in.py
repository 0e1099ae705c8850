"""A small vision transformer with the interface of timm's, and timm's factory around it.

Only what timm itself promises: `forward_features` gives [B, prefix + patches, d]; `patch_embed` has
`patch_size` and `img_size`; the attention passes its keys through `k_norm`.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "vit_small_patch14_dinov2"


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, img_size: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Transformer(nn.Module):
    """Positions are a function of the grid, so any size works unless it is fixed."""

    def __init__(
        self,
        img_size: int = 28,
        patch_size: int = 7,
        embed_dim: int = 32,
        depth: int = 3,
        class_token: bool = True,
        reg_tokens: int = 0,
        num_classes: int = 5,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.dynamic_img_size = embed_dim, dynamic_img_size
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.position = nn.Parameter(torch.zeros(1, 2, embed_dim))
        self.blocks = nn.Sequential(*(Block(embed_dim, 2) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward_features(self, x: Tensor) -> Tensor:
        if not self.dynamic_img_size:
            assert x.shape[-2:] == self.patch_embed.img_size
        grid = self.patch_embed(x)
        rows, columns = (torch.linspace(-1, 1, side) for side in grid.shape[-2:])
        where = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        patches = grid.flatten(2).transpose(1, 2) + where @ self.position
        first = [t for t in (self.cls_token, self.reg_token) if t is not None]
        tokens = torch.cat([*(t.expand(len(x), -1, -1) for t in first), patches], 1)
        return self.norm(self.blocks(tokens))


class Library(types.ModuleType):
    """What of timm is used, with one architecture.

    Attributes:
        calls: names and options of what was created.
        error: raised when weights are asked for.
        fixed: whether the architecture knows no `dynamic_img_size`.
    """

    def __init__(self) -> None:
        super().__init__("timm")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.fixed = False
        self.cfg: dict[str, Any] = {"architecture": NAME, "input_size": (3, 28, 28)}

    def list_models(self) -> list[str]:
        return [NAME, "resnet18"]

    def is_model(self, name: str) -> bool:
        return name in self.list_models()

    def get_pretrained_cfg(self, name: str, allow_unregistered: bool = True) -> Any:
        return types.SimpleNamespace(classifier="head")

    def create_model(self, name: str, **options: Any) -> nn.Module:
        self.calls.append((name, dict(options)))
        pretrained = options.pop("pretrained")
        overlay = options.pop("pretrained_cfg_overlay", {})
        if name.startswith("resnet"):
            return nn.Conv2d(3, 4, 7)
        if self.fixed and "dynamic_img_size" in options:
            raise TypeError("unexpected keyword argument 'dynamic_img_size'")
        model = Transformer(**options)
        model.pretrained_cfg = self.cfg
        if pretrained and self.error is not None:
            raise self.error
        if overlay:
            assert overlay["num_classes"] == 0 and overlay["classifier"] is None
            model.load_state_dict(overlay["state_dict"])
        return model
