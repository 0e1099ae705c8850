"""One step for each request, of the package in a given folder."""

from __future__ import annotations

from pathlib import Path

from bench.step_profile import kind
from bench.turns import Child

ROOT = Path(__file__).parents[2]
TINY = (
    "train.batch_size_per_gpu=2",
    "crops.local_crops_number=1",
    "dino.head_n_prototypes=16",
    "ibot.head_n_prototypes=16",
)


def test_steps_and_profiles_on_request():
    arguments = ["demo", "fp32", "torch", *TINY, "--package", str(ROOT), "--threads", "1"]
    with Child("one", "bench.step_child", arguments) as child:
        assert child.about["images"] == 2
        assert child.about["threads"] == 1
        step, profile = child.ask(), child.ask("profile")
    assert step["seconds"] > 0 and 0 < step["loss"] < 100
    assert {kind(name) for name in profile["operators"]} >= {"matrix products", "optimizer"}
