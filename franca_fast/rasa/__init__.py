"""RASA: removal of absolute spatial attributes from patch tokens (arXiv 2507.14137)."""

from __future__ import annotations

from franca_fast.hub.projector import PositionProjector
from franca_fast.models import ProjectedBackbone, ProjectedEncoder, RemovePositions

# The function, which is imported after its file and so keeps the name that both have.
from franca_fast.rasa.fit import fit
from franca_fast.rasa.report import PositionReport, position_report
from franca_fast.rasa.settings import FitSettings

__all__ = [
    "FitSettings",
    "PositionProjector",
    "PositionReport",
    "ProjectedBackbone",
    "ProjectedEncoder",
    "RemovePositions",
    "fit",
    "position_report",
]
