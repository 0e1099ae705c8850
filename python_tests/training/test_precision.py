"""Which device and number format a run gets."""

from __future__ import annotations

import pytest
import torch

from franca_fast import processor
from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.training import precision as module
from franca_fast.training.precision import (
    DTYPES,
    choose_device,
    choose_precision,
    describe_choice,
)

CPU = torch.device("cpu")


def config(autocast: str) -> Config:
    made = Config()
    made.compute_precision.autocast = autocast
    return made


@pytest.mark.parametrize(
    ("device", "has_units", "name"),
    [
        ("cpu", True, "bf16"),
        ("cpu", False, "fp32"),
        ("cuda", True, "bf16"),
        ("cuda", False, "fp16"),
    ],
)
def test_auto_is_bf16_only_where_products_gain_by_it(
    monkeypatch: pytest.MonkeyPatch, device: str, has_units: bool, name: str
) -> None:
    chosen = torch.device(device)
    flags = {"avx512f", "avx512_bf16"} if has_units else {"avx512f"}
    monkeypatch.setattr(processor, "instructions", lambda: flags)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_units)
    assert choose_precision(config("auto"), chosen).dtype == DTYPES[name]
    monkeypatch.setattr(module, "choose_device", lambda asked: chosen)
    assert f"in {name}, as {device} " in describe_choice()


@pytest.mark.parametrize(
    ("name", "dtype", "scales"),
    [
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, True),
        ("fp32", torch.float32, False),
    ],
)
def test_a_named_format_is_taken(name: str, dtype: torch.dtype, scales: bool) -> None:
    precision = choose_precision(config(name), CPU)
    assert (precision.dtype, precision.scale_loss) == (dtype, scales)


def test_the_scaler_can_be_switched_off() -> None:
    made = config("fp16")
    made.compute_precision.grad_scaler = False
    assert not choose_precision(made, CPU).scaler().is_enabled()


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"train\.device"):
        choose_device(name)


def test_the_cpu_can_be_asked_for() -> None:
    assert choose_device("cpu") == CPU
