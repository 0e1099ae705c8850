"""RASA: removal of absolute spatial attributes from patch tokens (arXiv 2507.14137)."""

from __future__ import annotations

from franca_fast.hub.projector import PositionProjector, RemovePositions
from franca_fast.models.position_removal import ProjectedBackbone
from franca_fast.rasa.fit import FitSettings
from franca_fast.rasa.report import PositionReport, position_report

__all__ = [
    "FitSettings",
    "PositionProjector",
    "PositionReport",
    "ProjectedBackbone",
    "RemovePositions",
    "position_report",
]
