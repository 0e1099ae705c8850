"""What is timed on a GPU: baselines, names, and inputs that no kernel under test made."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from bench.gpu import measure, parts, profile, report, works
from bench.gpu.case import Setting

UNNAMED = {"varlen_attn", "flash_attn"}  # there with PyTorch's and FlashAttention's own kernels


@pytest.fixture
def paper_cases(monkeypatch):
    """All works as on a card, of which nothing is made or called here."""
    monkeypatch.setattr(Setting, "backends", lambda *_: ["cuda", "triton", "torch"])
    return list(works.cases(Setting(torch.device("cpu"))))


def test_every_work_has_a_baseline_and_a_roofline(paper_cases):
    assert len({case.name for case in paper_cases}) == len(paper_cases)
    for case in paper_cases:
        assert case.bytes_moved or case.operations, case.name
        ceiling = case.name.startswith("ceiling: ")
        assert ceiling or set(report.BASELINES) & set(case.variants) - {"torch"}, case.name


def test_every_variant_is_timed_and_every_name_means_something(paper_cases):
    names = {name for case in paper_cases for name in case.variants} | UNNAMED
    asked, warmed = set(), set()
    for part in (part for stages in parts.SESSIONS.values() for stage in stages for part in stage):
        if part.module == "timings":
            asked |= {word.removeprefix("--variant=") for word in part.arguments if "=" in word}
        if "--only" in part.arguments:
            family = part.arguments[part.arguments.index("--only") + 1]
            warmed |= {case.name for case in paper_cases if case.name.startswith(family)}
    # The reference itself is timed in whole steps.
    assert asked == names - {"torch", "torch in place"}
    with_triton = {case.name for case in paper_cases if "triton" in case.variants}
    assert {name for name in with_triton if not name.startswith("scores")} == warmed
    for word, (variant, which) in profile.WANTED.items():
        cases = [case for case in paper_cases if case.name.split()[0] == word]
        assert any(variant in case.variants and which in case.name for case in cases)


def tensors(inputs):
    if isinstance(inputs, torch.Tensor):
        return [inputs]
    if inputs is None or isinstance(inputs, float):  # what targets have beside tensors
        return []
    return [tensor for part in inputs for tensor in tensors(part)]


def test_inputs_come_from_no_kernel_under_test():
    setting = measure.setting_of("cpu")
    for case in works.cases(setting):
        made = []
        for backend in setting.backends("sinkhorn"):
            torch.manual_seed(0)
            with ff.use_backend(backend):
                made.append(tensors(case.make()))
        assert all(all(map(torch.equal, made[0], others)) for others in made), case.name
