"""The vision transformer of DINOv2 and Franca (arXiv 2304.07193, 2507.14137)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.models.block import Block
from franca_fast.models.stochastic_depth import Crops, draw_subsets

_INITIAL = ("init_std", "pos_embed_init_std")


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each: [B, C, H, W] -> [B, n, d]."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Patch tokens in row-major order."""
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"image: {height} x {width} pixels; "
                f"accepted: multiples of the patch size {self.patch_size}"
            )
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Vision transformer with masking, registers and position interpolation.

    Args:
        img_size: Side in pixels of the square images that the position embedding is made for; other
            sizes interpolate it. A multiple of `patch_size`.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the images.
        embed_dim: Width d.
        depth: Number of blocks.
        num_heads: Heads of each block; divides `embed_dim`.
        mlp_ratio: Width of the feed-forward over d (before SwiGLU's two thirds).
        qkv_bias: Whether the qkv projections have a bias.
        proj_bias: Whether the attention's output projections have a bias.
        ffn_bias: Whether the feed-forwards have a bias.
        drop_path_rate: Stochastic depth rate, see `Block`.
        drop_path_uniform: The same rate in every block; otherwise it grows linearly from 0.
        layerscale: Initial LayerScale factor; None or 0 for no LayerScale.
        ffn_layer: "mlp", "swiglu" or "swiglufused" (the same as "swiglu").
        num_register_tokens: Register tokens r (arXiv 2309.16588).
        interpolate_antialias: Antialiasing in position interpolation.
        interpolate_offset: Added to the target grid in the scale factor of the interpolation; 0
            interpolates to the target size instead.
        init_std: Standard deviation of the initial linear weights of the blocks.
        pos_embed_init_std: That of the initial position embedding.

    Attributes:
        config: The arguments, JSON-able, without the two that only say where weights begin;
            `VisionTransformer(**config)` builds the same network.

    Example:
        >>> import torch, franca_fast as ff
        >>> vit = ff.models.VisionTransformer(img_size=28, patch_size=14, embed_dim=64, depth=2,
        ...                                   num_heads=4)
        >>> vit.forward_features(torch.randn(2, 3, 28, 42))["x_norm_patchtokens"].shape
        torch.Size([2, 6, 64])
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 14,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = True,
        layerscale: float | None = 1e-5,
        ffn_layer: str = "swiglufused",
        num_register_tokens: int = 0,
        interpolate_antialias: bool = False,
        interpolate_offset: float = 0.1,
        init_std: float = 0.02,
        pos_embed_init_std: float = 0.02,
    ) -> None:
        # Where the weights began is no part of what the network is.
        config: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__", *_INITIAL)
        }
        super().__init__()
        self.config = config
        if img_size < patch_size or img_size % patch_size:
            raise InputError(
                f"img_size: {img_size}; accepted: a multiple of patch_size ({patch_size})"
            )
        if embed_dim % num_heads:
            raise InputError(f"num_heads: {num_heads}; accepted: a divisor of {embed_dim}")
        if not 0.0 <= drop_path_rate < 1.0:
            raise InputError(f"drop_path_rate: {drop_path_rate}; accepted: 0 <= rate < 1")
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.patch_size, self.num_register_tokens = patch_size, num_register_tokens
        self.interpolate_antialias = interpolate_antialias
        self.interpolate_offset = interpolate_offset

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        self.register_tokens = (
            nn.Parameter(torch.empty(1, num_register_tokens, embed_dim))
            if num_register_tokens
            else None
        )
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                proj_bias=proj_bias,
                ffn_bias=ffn_bias,
                drop_path=drop_path_rate * (1.0 if drop_path_uniform else i / max(1, depth - 1)),
                layerscale=layerscale,
                ffn_layer=ffn_layer,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._init_weights(init_std, pos_embed_init_std)

    def _init_weights(self, std: float, pos_embed_std: float) -> None:
        if self.cls_token.is_meta:  # there is nothing to fill, and PyTorch imports its compiler
            return
        nn.init.trunc_normal_(self.pos_embed, std=pos_embed_std)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised CLS token of each image: [B, C, H, W] -> [B, d]."""
        return self.forward_features(x)["x_norm_clstoken"]

    def forward_features(
        self,
        x: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor | None] | None = None,
        patches: Tensor | Sequence[Tensor] | None = None,
    ) -> Any:
        """Tokens of images of one size or of several sizes at once.

        Args:
            x: Images [B, C, H, W], or a list of such batches (crop sizes), which go through the
                blocks packed together. Results equal those of separate calls.
            masks: bool [B, n], patches to replace by the mask token; for a list of batches a list
                of masks or None.
            patches: int64 [m], the patches that are asked for, numbered over the batch (0 to
                B n - 1), none of them twice; for a list of batches a list. The last block then
                computes these and the CLS tokens alone, which is much of a shallow network.
                Default: all.

        Returns:
            A dict (for a list: a list of dicts) with `x_norm_clstoken` [B, d], `x_norm_regtokens`
            [B, r, d], `x_norm_patchtokens` [B, n, d], `x_prenorm` [B, 1 + r + n, d] and `masks`.
            With `patches` a dict has `x_norm_clstoken` [B, d], `x_norm_patchtokens` [m, d] and
            `masks`.

        Example:
            >>> import torch, franca_fast as ff
            >>> vit = ff.models.VisionTransformer(img_size=28, patch_size=14, embed_dim=64, depth=2,
            ...                                   num_heads=4)
            >>> images = torch.randn(2, 3, 28, 28)
            >>> every = vit.forward_features(images)["x_norm_patchtokens"]
            >>> some = vit.forward_features(images, patches=torch.tensor([1, 6]))
            >>> torch.allclose(some["x_norm_patchtokens"], every.flatten(0, 1)[[1, 6]], atol=1e-5)
            True
        """
        if isinstance(x, Tensor) and patches is None:
            tokens = self._tokens(x, masks)  # type: ignore[arg-type]
            for block in self.blocks:
                tokens = block(tokens)
            return self._outputs(tokens, masks)  # type: ignore[arg-type]
        if isinstance(x, Tensor):
            return self._packed([x], [masks], [patches])[0]  # type: ignore[list-item]
        batches = list(x)
        masks_of = [None] * len(batches) if masks is None else list(masks)
        if not batches or len(masks_of) != len(batches):
            raise InputError(
                f"x: {len(batches)} batches with {len(masks_of)} masks; "
                f"accepted: at least one batch, and one mask or None for each"
            )
        return self._packed(batches, masks_of, None if patches is None else list(patches))

    def _packed(
        self,
        batches: list[Tensor],
        masks: Sequence[Tensor | None],
        patches: Sequence[Tensor] | None,
    ) -> list[dict[str, Tensor | None]]:
        each = [self._tokens(b, m) for b, m in zip(batches, masks, strict=True)]
        crops = [(t.shape[0], t.shape[1]) for t in each]
        packed = torch.cat([t.flatten(0, 1) for t in each])
        if patches is None:
            parts = self._blocks(packed, crops).split([images * length for images, length in crops])
            return [
                self._outputs(part.unflatten(0, crop), mask)
                for part, crop, mask in zip(parts, crops, masks, strict=True)
            ]
        rows = self._rows(crops, patches)
        tokens = self.norm(self._blocks(packed, crops, torch.cat(rows)))
        parts = tokens.split([some.shape[0] for some in rows])
        return [
            {"x_norm_clstoken": cls_tokens, "x_norm_patchtokens": patch_tokens, "masks": mask}
            for cls_tokens, patch_tokens, mask in zip(parts[::2], parts[1::2], masks, strict=True)
        ]

    def _blocks(self, packed: Tensor, crops: Crops, rows: Tensor | None = None) -> Tensor:
        """Packed tokens [tokens, d] after all blocks, or the [n, d] of these rows."""
        blocks = list(cast("Iterable[Block]", self.blocks))
        rates = [block.drop_path if block.training else 0.0 for block in blocks]
        drawn = draw_subsets(crops, rates, packed.device)
        for block, subsets in zip(blocks, drawn, strict=True):
            of_last = rows if block is blocks[-1] else None
            packed = block.forward_packed(packed, crops, subsets, of_last)
        return packed

    def _rows(self, crops: Crops, patches: Sequence[Tensor]) -> list[Tensor]:
        """Rows of the packed tokens: of each crop size the CLS tokens, then some patches."""
        if len(patches) != len(crops) or any(
            p.dtype != torch.int64 or p.dim() != 1 for p in patches
        ):
            forms = [f"{p.dtype} {tuple(p.shape)}" for p in patches]
            raise InputError(
                f"patches: {', '.join(forms)}; accepted: torch.int64 [m], one for each of "
                f"{len(crops)} batches"
            )
        rows, start, n_others = [], 0, 1 + self.num_register_tokens
        for (images, tokens), numbers in zip(crops, patches, strict=True):
            stop = start + images * tokens
            rows.append(torch.arange(start, stop, tokens, device=numbers.device))
            image = numbers.div(tokens - n_others, rounding_mode="floor")
            rows.append(numbers + (start + n_others) + image * n_others)
            start = stop
        return rows

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Patch tokens of several blocks, for dense tasks.

        Args:
            x: Images [B, C, H, W].
            n: The last n blocks, or the indices of blocks.
            reshape: Give [B, d, H / patch, W / patch] instead of [B, n, d].
            return_class_token: Give pairs (patch tokens, CLS token [B, d]).
            norm: Apply the final LayerNorm.

        Returns:
            A tuple with one entry for each block.
        """
        wanted = range(self.depth - n, self.depth) if isinstance(n, int) else list(n)
        if not len(wanted) or min(wanted) < 0 or max(wanted) >= self.depth:
            raise InputError(f"n: {n}; accepted: 1..{self.depth}, or indices 0..{self.depth - 1}")
        tokens, outputs = self._tokens(x, None), []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i in wanted:
                outputs.append(self.norm(tokens) if norm else tokens)
        first_patch = 1 + self.num_register_tokens
        patches = [out[:, first_patch:] for out in outputs]
        if reshape:
            grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
            patches = [p.transpose(1, 2).unflatten(2, grid) for p in patches]
        if return_class_token:
            return tuple(zip(patches, (out[:, 0] for out in outputs), strict=True))
        return tuple(patches)

    def _tokens(self, x: Tensor, masks: Tensor | None) -> Tensor:
        """Input tokens [B, 1 + r + n, d]: CLS, registers, patches."""
        channels = self.patch_embed.proj.in_channels
        if x.dim() != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise InputError(
                f"x: {x.dtype} {tuple(x.shape)}; accepted: images [batch, {channels}, height, "
                "width] of a floating dtype, normalised (see franca_fast.data.eval_transform)"
            )
        height, width = x.shape[-2:]
        patches = self.patch_embed(x)
        if masks is not None:
            if masks.shape != patches.shape[:2] or masks.dtype != torch.bool:
                raise InputError(
                    f"masks: {masks.dtype} {tuple(masks.shape)}; "
                    f"accepted: torch.bool {tuple(patches.shape[:2])}"
                )
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        cls_token = self.cls_token.to(patches.dtype).expand(x.shape[0], -1, -1)
        tokens = torch.cat([cls_token, patches], dim=1)
        tokens = tokens + self.position_embedding(height, width).to(tokens.dtype)
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.to(tokens.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def position_embedding(self, height: int, width: int) -> Tensor:
        """Position embedding [1, 1 + n, d] of an image of this many pixels."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        rows, columns = height // self.patch_size, width // self.patch_size
        if (rows, columns) == (side, side):
            return self.pos_embed
        position = self.pos_embed.float()
        grid = position[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.interpolate_offset:
            # A small offset keeps floor(side * factor) from falling one short of the target.
            offset = self.interpolate_offset
            target: dict[str, Any] = {
                "scale_factor": ((rows + offset) / side, (columns + offset) / side)
            }
        else:
            target = {"size": (rows, columns)}
        grid = F.interpolate(grid, mode="bicubic", antialias=self.interpolate_antialias, **target)
        return torch.cat([position[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    def _outputs(self, tokens: Tensor, masks: Tensor | None) -> dict[str, Tensor | None]:
        first_patch = 1 + self.num_register_tokens
        normed = self.norm(tokens)
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:first_patch],
            "x_norm_patchtokens": normed[:, first_patch:],
            "x_prenorm": tokens,
            "masks": masks,
        }
