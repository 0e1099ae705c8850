"""The baselines compute what the operators that they are compared with compute."""

from __future__ import annotations

import pytest
import torch

from franca_fast.benchmarks import cases


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.WIDTHS, "nested", (8, 16))


def test_assignments_are_those_of_the_published_loop() -> None:
    case = cases.sinkhorn_case(5, "nested", "fp32", with_compile=False)
    inputs = case.make()
    assert case.logits_bytes == 4 * sum(z.numel() for z in inputs)
    ours, published = (case.variants[name](inputs) for name in ("assignments", "eager"))
    for q, exact in zip(ours, published, strict=True):
        torch.testing.assert_close(q, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["fused", "in place"])
def test_gradients_are_those_of_the_published_loss(variant: str) -> None:
    case = cases.loss_case(5, "nested", "fp32", with_compile=False)
    inputs = case.make()
    # The baseline first: "in place" writes over the logits.
    published = case.variants["eager"](inputs)
    for ours, exact in zip(case.variants[variant](inputs), published, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gradients_are_those_of_pytorchs_weight_norm(dtype: str) -> None:
    case = cases.scores_case(5, "nested", dtype, with_compile=False)
    inputs = case.make()
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[dtype]
    for ours, exact in zip(*(case.variants[n](inputs) for n in ("fused", "eager")), strict=True):
        torch.testing.assert_close(
            ours, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max())
        )
