"""Checkpoints: their form, how they are written, and what of a run they hold."""
