"""Stored and streamed scores: the choice, and that a step does not depend on it."""

from __future__ import annotations

import pytest
import torch

from franca_fast.config import load_config
from franca_fast.errors import InputError
from franca_fast.training.run import Run
from franca_fast.training.score_memory import choose_score_memory
from franca_fast.training.student_teacher import StudentTeacher
from python_tests.training.tiny import TINY


def choose(recipe, *overrides: str):
    config = load_config(recipe, list(overrides))
    with torch.device("meta"):
        scores = StudentTeacher(config).scored_rows(config)
    return choose_score_memory(config, torch.device("cpu"), torch.bfloat16, scores)


def test_auto_stores_what_fits_and_streams_what_does_not() -> None:
    assert not choose("vitb14_in21k", "train.batch_size_per_gpu=1").streamed
    assert choose("vitb14_in21k", "train.batch_size_per_gpu=100000").streamed


def test_the_estimate_counts_scores_and_gradients() -> None:
    memory = choose("vitb14_in21k", "train.batch_size_per_gpu=32")
    # 253,952 prototypes in bf16: 2 teacher rows and twice 10 student rows of each image, and three
    # times the masked patches, half of 64 crops with 37.5 per cent of 256 patches.
    assert memory.stored_bytes == 2 * 253_952 * (32 * 22 + 3 * 3072)


@pytest.mark.parametrize("mode", ["stored", "streamed"])
def test_a_request_is_followed(mode: str) -> None:
    assert choose("vitb14_in21k", f"train.scores={mode}").streamed == (mode == "streamed")


def test_a_step_does_not_depend_on_the_mode() -> None:
    losses, gradients = [], []
    for mode in ("stored", "streamed"):
        run = Run(load_config(TINY, [f"train.scores={mode}", "compute_precision.autocast=fp32"]))
        batches, _ = run.next_batches()
        output, _ = run.train_on(batches, diagnose=True)
        losses.append([output.loss, output.statistics["dino_entropy"]])
        gradients.append([p.grad for p in run.model.student.parameters() if p.grad is not None])
        run.close()
    for stored, streamed in zip(*losses, strict=True):
        torch.testing.assert_close(streamed, stored, rtol=1e-4, atol=1e-5)
    for stored, streamed in zip(*gradients, strict=True):
        torch.testing.assert_close(streamed, stored, rtol=1e-3, atol=1e-5)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.scores"):
        load_config(TINY, ["train.scores=some"])
