"""The table of vision transformer sizes."""

from __future__ import annotations

from typing import Any

from franca_fast.errors import InputError, did_you_mean
from franca_fast.models.vision_transformer import VisionTransformer

# Width, depth and heads of DINOv2's family; vit_tiny is DeiT's, and the two before it learn small
# images in minutes on a laptop: vit_micro sooner, since many heads tell parts of an image apart.
ARCHITECTURES: dict[str, dict[str, int]] = {
    "vit_nano": {"embed_dim": 128, "depth": 4, "num_heads": 2},
    "vit_micro": {"embed_dim": 128, "depth": 4, "num_heads": 8},
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_giant2": {"embed_dim": 1536, "depth": 40, "num_heads": 24},
    "vit_2b": {"embed_dim": 2688, "depth": 24, "num_heads": 21},
    "vit_3b": {"embed_dim": 3072, "depth": 26, "num_heads": 24},
    "vit_5b": {"embed_dim": 3584, "depth": 32, "num_heads": 28},
    "vit_7b": {"embed_dim": 4096, "depth": 32, "num_heads": 32},
}


def build_backbone(arch: str, **overrides: Any) -> VisionTransformer:
    """Builds a vision transformer of a named size with random weights.

    Args:
        arch: A key of `ARCHITECTURES`.
        overrides: Further arguments of `VisionTransformer`; they win over the table.

    Raises:
        InputError: If the name is unknown.

    Example:
        >>> import franca_fast as ff
        >>> ff.models.build_backbone("vit_tiny", patch_size=4, img_size=28, depth=2).embed_dim
        192
    """
    if arch not in ARCHITECTURES:
        raise InputError(
            f"arch: unknown architecture {arch!r}{did_you_mean(arch, ARCHITECTURES)}; "
            f"accepted: {', '.join(ARCHITECTURES)}"
        )
    return VisionTransformer(**{**ARCHITECTURES[arch], **overrides})
