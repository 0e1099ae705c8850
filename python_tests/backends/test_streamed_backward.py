"""The backward pass that backends with kernels of their own share, with a kernel that looks up."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends import _streamed_backward as shared
from franca_fast.backends.contracts import Scores

WIDTHS = (70, 13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_elements", [1, 1 << 20])
def test_chunks_add_up_to_the_products_of_all_columns(monkeypatch, dtype, chunk_elements):
    monkeypatch.setattr(shared, "CHUNK_ELEMENTS", chunk_elements)
    features = [torch.randn(5, 6).to(dtype) for _ in WIDTHS]
    prototypes = [torch.randn(k, 6).to(dtype) for k in WIDTHS]
    scales = [torch.rand(k) for k in WIDTHS]
    products = [torch.randn(5, k).to(dtype) for k in WIDTHS]
    asked = []

    def kernel(head, columns, dscale):
        asked.append(columns.stop - columns.start)
        dscale.copy_(torch.arange(columns.start, columns.stop))
        return products[head][:, columns]

    dx, dv, dscale = shared.backward(Scores(features, prototypes, scales), 16, kernel)
    assert asked == ([16, 16, 16, 16, 6, 13] if chunk_elements == 1 else [70, 13])
    eps = 2 * torch.finfo(dtype).eps
    for h, k in enumerate(WIDTHS):
        exact = products[h].double() @ prototypes[h].double()
        torch.testing.assert_close(dx[h].double(), exact, rtol=eps, atol=8 * eps)
        exact = products[h].double().t() @ features[h].double()
        torch.testing.assert_close(dv[h].double(), exact, rtol=eps, atol=8 * eps)
        assert torch.equal(dscale[h], torch.arange(k).float())


def test_no_rows_have_gradients_of_zero():
    scores = Scores([torch.zeros(0, 6)], [torch.ones(9, 6)], [torch.ones(9)])
    dx, dv, dscale = shared.backward(scores, 16, lambda *_: pytest.fail("there is nothing to do"))
    assert dx[0].shape == (0, 6) and not dv[0].any() and not dscale[0].any()


def test_a_sum_in_float32_is_not_asked_of_a_pytorch_that_has_none(monkeypatch):
    def addmm(*_, **__):
        raise TypeError("unexpected keyword argument 'out_dtype'")

    monkeypatch.setattr(torch, "addmm", addmm)
    shared._adds_to_float32.cache_clear()
    assert not shared._adds_to_float32(torch.bfloat16, "cpu")
    shared._adds_to_float32.cache_clear()
