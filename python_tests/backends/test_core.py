"""Matrices as the compiled core takes them, or why it does not."""

from __future__ import annotations

import pytest
import torch

from franca_fast.backends._core import pack_heads, places, unreadable
from franca_fast.errors import InputError


def test_rows_may_be_apart_and_columns_are_made_adjacent():
    apart, turned = torch.randn(4, 9)[:, :3], torch.randn(5, 4).t()
    heads = pack_heads([apart, turned], "scores")
    assert heads.columns == [3, 5] and heads.n_rows == 4
    assert heads.numbers[:3] == [apart.data_ptr(), 3, 9] and heads.numbers[5] == 5
    assert heads.tensors[0] is apart and torch.equal(heads.tensors[1], turned)


@pytest.mark.parametrize(
    ("device", "elsewhere"),
    [("cpu", torch.empty(4, 3, device="meta")), ("meta", torch.empty(4, 3))],
)
def test_matrices_of_another_device_are_refused(device, elsewhere):
    with pytest.raises(InputError, match=rf"^scores\[0\]: .*; accepted: .* on {device}"):
        pack_heads([elsewhere], "scores", torch.device(device))


def test_gradients_need_adjacent_columns():
    student = pack_heads([torch.randn(4, 3)], "student")
    with pytest.raises(InputError, match=r"^out: columns apart; accepted: adjacent columns"):
        places([torch.empty(3, 4).t()], student)


def test_kernels_read_their_device_and_three_dtypes():
    assert unreadable(torch.empty(0), "cpu") is None
    assert unreadable(torch.empty(0), "cuda") == "it runs on cuda tensors"
    assert unreadable(torch.empty(0).double(), "cpu") == "it reads float32, bfloat16, float16"
