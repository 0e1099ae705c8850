"""The losses: nested image-level and patch-level clustering, and KoLeo."""

from __future__ import annotations

from .koleo import KoLeoLoss
from .nested_dino import NestedDINOLoss
from .nested_ibot import NestedIBOTLoss
from .targets import ClusteringLoss, ClusteringTargets

__all__ = ["ClusteringLoss", "ClusteringTargets", "KoLeoLoss", "NestedDINOLoss", "NestedIBOTLoss"]
