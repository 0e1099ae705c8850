"""The benchmark of in-context segmentation at a small size: what it measures, and the table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

from bench import in_context
from franca_fast.evaluation.dense.memory import progress as search_progress
from franca_fast.evaluation.dense.patch_grids import square

SMALL = ["--images", "120", "--query-images", "2", "--size", "28", "--width", "16"]
SETTINGS = argparse.Namespace(
    images=120, query_images=2, size=28, width=16, batch_size=7, memory_gb=7.0, save_every=60.0
)


def test_a_killed_run_goes_on_with_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, which take some seconds to start."""
    monkeypatch.setattr(search_progress, "SECONDS_BETWEEN_SAVES", 300.0)  # put back afterwards
    SETTINGS.folder = tmp_path
    whole = in_context.measure(SETTINGS)
    assert whole["pairs"] == whole["pairs_of_all"] == 120 * 2 * 4**2
    assert 0 < whole["search_seconds"] < whole["seconds"]
    assert 1e8 < whole["peak_bytes_before"] <= whole["peak_bytes"]
    assert 0 < whole["figures"]["mIoU"] <= 100
    output = tmp_path / "result.json"
    words = ["--interrupt-after", "0", "--save-every", "0", "--batch-size", "1"]
    command = ["in_context", *SMALL, *words, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    in_context.main()
    killed, rest = json.loads(output.read_text())["runs"]
    assert killed["killed_after_seconds"] > 0 and killed["bytes_saved"] > 0
    assert rest["figures"] == whole["figures"]
    assert 0 < rest["pairs"] < whole["pairs"] and rest["below_the_limit"]
    table = output.with_suffix(".md").read_text()
    assert "120 images x 4 patches x 16 numbers" in table and "was killed after" in table


def test_the_plan_of_voc(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["in_context", "--plan"])
    in_context.main()
    plan = json.loads(capsys.readouterr().out)
    assert plan["memory_patches"] == 10_582 * 1_369
    assert plan["memory_as_float32_gb"] == 44.5
    assert sum(plan["groups_of_val"]) == 1_449
    most = max(plan["groups_of_val"]) * plan["bytes_of_a_query_image"] + plan["bytes_besides"]
    assert most <= 7e9


def test_the_estimate_scales_what_was_measured() -> None:
    arguments = argparse.Namespace(images=100, width=10)
    run = {"search_seconds": 3.0, "seconds": 5.0, "pairs": 10**6, "pairs_of_all": 2 * 10**6}
    estimate = in_context.estimate(arguments, run, {"patches": 4, "groups_of_val": [700, 749]})
    pairs = 1_449 * 100 * 4**2
    assert estimate["search_hours_of_val"] == round(3e-6 * pairs / 3600, 2)
    assert estimate["making_hours_of_val"] == round(2 * 2 * 2.0 / 3600, 2)
    assert estimate["pairs_per_second"] == 333_333


def test_features_are_those_of_the_number_that_an_image_shows() -> None:
    images, encoder = in_context.NumberedImages(3, 300, 28), in_context.NumberedEncoder(8)
    shown = torch.stack([square(images.load(i)[0], 28) for i in range(3)])
    tokens = encoder.forward_features(shown)["x_norm_patchtokens"]
    assert tokens.shape == (3, 4, 8)
    alone = encoder.forward_features(shown[1:2])["x_norm_patchtokens"]
    assert torch.equal(alone[0], tokens[1]) and not torch.equal(tokens[0], tokens[1])
    mask = images.load(0)[1]
    assert (mask[0, 0], mask[0, -1]) == in_context.classes_of(300)
