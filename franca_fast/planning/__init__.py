"""What a run would need here: memory and time, measured on one step before anything begins."""

from __future__ import annotations

from franca_fast.planning.plan import plan_training

__all__ = ["plan_training"]
