"""What a step would need, planned from shapes alone: memory, communication and work."""

from __future__ import annotations

from franca_fast.planning.plan import plan_training

__all__ = ["plan_training"]
