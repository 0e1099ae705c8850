"""The patch-level loss against golden values; padding and empty masks."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError
from python_tests.helpers import heads


def golden_problem(golden, golden_facts):
    student = [s.clone().requires_grad_() for s in heads(golden, "ibot.student_logits")]
    loss = ff.losses.NestedIBOTLoss([s.shape[1] for s in student])
    return student, loss, golden_facts["sinkhorn"]["temperature"]


def test_equals_golden(golden, golden_facts):
    student, loss, temperature = golden_problem(golden, golden_facts)
    targets = loss.targets(heads(golden, "ibot.teacher_logits"), temperature)
    value = loss(student, targets, golden["ibot.masks_weight"], golden["ibot.masks"].shape[0])
    torch.testing.assert_close(value.sum(), golden["ibot.loss"], rtol=1e-5, atol=0)
    value.sum().backward()
    for ours, theirs in zip(student, heads(golden, "ibot.grad"), strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-5, atol=1e-7)


def test_padding_rows_do_not_count(golden, golden_facts):
    _, loss, temperature = golden_problem(golden, golden_facts)
    teacher = heads(golden, "ibot.teacher_logits")
    padded = [torch.cat([z, torch.zeros(5, z.shape[1])]) for z in teacher]
    clean = loss.targets(teacher, temperature)
    targets = loss.targets(padded, temperature, n_valid=teacher[0].shape[0])
    for a, b in zip(targets.potentials.prototype, clean.potentials.prototype, strict=True):
        assert torch.equal(a, b)


def test_no_masked_patch_gives_zero():
    loss = ff.losses.NestedIBOTLoss([8])
    student = torch.randn(0, 8, requires_grad=True)
    value = loss([student], loss.targets([torch.randn(0, 8)], 0.05), torch.zeros(0), n_crops=4)
    value.sum().backward()
    assert value.tolist() == [0.0] and student.grad.shape == (0, 8)


def test_crops_must_be_counted():
    loss = ff.losses.NestedIBOTLoss([8])
    with pytest.raises(InputError, match="n_crops: 0"):
        loss([torch.randn(3, 8)], loss.targets([torch.randn(3, 8)], 0.05), torch.ones(3), 0)
