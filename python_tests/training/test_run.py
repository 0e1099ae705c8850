"""A step of a run at full size."""

from __future__ import annotations

import json

import pytest

from python_tests.training.tiny import start

# ViT-B/14, 131,072 prototypes, five nested heads of both kinds, as the released recipe trains it.
FULL_SIZE = """
import json, time
from franca_fast.config.files import load_config
from franca_fast.training.reporting.metrics import peak_memory_gb
from franca_fast.training.run import Run

overrides = ["train.batch_size_per_gpu=2", "train.num_workers=0", "train.device=cpu",
             "train.dataset_path=FashionMNIST:split=TEST", "optim.lr=1e-3",
             "optim.warmup_epochs=0"]
started = time.perf_counter()
run = Run(load_config("vitb14_in21k", overrides))
built = time.perf_counter()
batches, _ = run.next_batches()
output, _ = run.train_on(batches, diagnose=False)
print(json.dumps({
    "finite": bool(output.finite),
    "heads": [list(run.model.student.head_of("dino").out_dims),
              list(run.model.student.head_of("ibot").out_dims)],
    "gb": peak_memory_gb(run.device),
    "seconds": [built - started, time.perf_counter() - built],
}))
"""


@pytest.mark.timeout(600)
def test_a_step_of_vit_b_with_all_prototypes_stays_under_20_gb() -> None:
    process = start(FULL_SIZE)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    figures = json.loads(output)
    assert figures["heads"] == [[8192, 16384, 32768, 65536, 131072]] * 2
    assert figures["finite"]
    assert figures["gb"] < 20
