"""Checks of values that types alone do not catch."""

from __future__ import annotations

import pytest

from franca_fast.config.files import load_config
from franca_fast.errors import InputError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.centering=sinkhorn"], "did you mean 'sinkhorn_knopp'"),
        (["train.batch_size_per_gpu=0"], "train.batch_size_per_gpu: 0; accepted: a number above 0"),
        (["optim.clip_grad=-1"], "optim.clip_grad"),
        (
            ["teacher.momentum_teacher=1.1"],
            "teacher.momentum_teacher: 1.1; accepted: a number 0 or more, 1 or less",
        ),
        (["student.drop_path_rate=1.0"], "student.drop_path_rate"),
        (["train.total_steps=0"], "train.total_steps: 0; accepted: null, or a number above 0"),
        (["student.arch=vit_bass"], "did you mean 'vit_base'"),
        (["student.patch_size=14"], "local_crops_size: 96 is not a multiple of the patch size 14"),
        (["crops.global_crops_scale=[0.9,0.1]"], "global_crops_scale"),
        (["ibot.mask_ratio_min_max=[0.5,0.1]"], "mask_ratio_min_max"),
        (["dino.nesting_dims=[64,32,1024]"], "dino.nesting_dims: [64, 32, 1024]"),
        (["dino.nesting_dims=[64]"], "end with 1024"),
        (["dino.nesting_dims=[64,1024]", "dino.MRL=false"], "dino.MRL is false"),
        (["dino.head_n_prototypes=1000"], "accepted: a multiple of 16"),
        (["dino.loss_weight=0", "ibot.loss_weight=0"], "accepted: one of them above 0"),
        (["ibot.mask_sample_probability=0"], "no patch is ever masked"),
        (["train.total_steps=10"], "longer than the run (10 steps)"),
        (["MODEL.WEIGHTS=a", "student.pretrained_weights=b"], "accepted: one of them"),
        (
            ["compute_precision.student.backbone.mixed_precision.param_dtype=fp8"],
            "accepted: fp32, fp16, bf16",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_an_input_error(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, overrides)
    assert message in str(caught.value)


def test_local_crop_size_does_not_matter_without_local_crops() -> None:
    config = load_config(None, ["student.patch_size=14", "crops.local_crops_number=0"])
    assert config.crops.local_crops_size == 96
