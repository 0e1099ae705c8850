"""Reports of positions on a GPU, as far as a machine without one shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from franca_fast.models import VisionTransformer
from franca_fast.rasa import FitSettings, PositionProjector, position_report
from python_tests.data.files import write_folder


def _report_on_the_gpu(images: Path) -> None:
    with torch.device("cuda"):
        model = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)
    projector = PositionProjector(torch.randn(1, 2, 32))
    settings = FitSettings(epochs=2, batch_size=10, encode_batch=20, num_workers=0)
    report = position_report(model.eval(), images, projector, settings)
    assert (report.probe_images, report.held_out_images) == (20, 20)
    assert report.before.trained_mse is not None and report.after.trained_mse is not None


def test_a_report_waits_for_no_step(fake_gpu: Callable[..., Any], tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", ["a", "b"], 20)
    assert fake_gpu(_report_on_the_gpu, images) == {
        # The first image, two batches of all, and those that are pictured.
        "rasa/patch_tokens.py: tokens_of": 1 + 2 + 1,
        "rasa/patch_tokens.py: check_finite": 1 + 2 + 1,
        "rasa/patch_tokens.py: open_features": 2,
        # Two for the moments of a half and in each epoch and measurement; before and after.
        "rasa/patch_tokens.py: batches": 2 * 2 + 1 + 2 * (2 * 2 + 2),
        "rasa/positions.py: __init__": 2 * (1 + 3),
        "rasa/readout.py: __init__": 2,
        "rasa/readout.py: _train": 2 * (2 + 2 + 1),
        "rasa/readout.py: error": 2 * (2 + 1),
        "rasa/report.py: position_report": 1,
    }
