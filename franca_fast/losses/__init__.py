"""The losses: nested image-level and patch-level clustering, and KoLeo."""

from __future__ import annotations

from franca_fast.errors import renamed
from franca_fast.losses.clustering import ClusteringLoss
from franca_fast.losses.koleo import KoLeoLoss
from franca_fast.losses.nested_dino import NestedDINOLoss
from franca_fast.losses.nested_ibot import NestedIBOTLoss

__all__ = ["ClusteringLoss", "KoLeoLoss", "NestedDINOLoss", "NestedIBOTLoss"]

__getattr__ = renamed(__name__, {"ClusteringTargets": "franca_fast.ops.ClusteringTargets"})
