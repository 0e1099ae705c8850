"""The vision transformer, the nested prototype head, position removal, and architectures."""

from __future__ import annotations

from franca_fast.models.architectures import ARCHITECTURES, build_backbone
from franca_fast.models.nested_head import (
    PROJECTIONS,
    NestedPrototypeHead,
    WeightNormPrototypes,
    default_nesting_dims,
    shared_prototypes,
)
from franca_fast.models.position_removal import ProjectedBackbone, RemovePositions
from franca_fast.models.projected_encoder import ProjectedEncoder
from franca_fast.models.vision_transformer import VisionTransformer

__all__ = [
    "ARCHITECTURES",
    "PROJECTIONS",
    "NestedPrototypeHead",
    "ProjectedBackbone",
    "ProjectedEncoder",
    "RemovePositions",
    "VisionTransformer",
    "WeightNormPrototypes",
    "build_backbone",
    "default_nesting_dims",
    "shared_prototypes",
]
