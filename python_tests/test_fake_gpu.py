"""The fake GPU itself: what it lets pass and what it refuses."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import franca_fast as ff
from python_tests.fake_gpu import WAITS, MixedDevices, NeedlessWait

DEFECTS: dict[str, tuple[Callable[[Tensor], Any], type[AssertionError]]] = {
    "cpu": (lambda x: x.cpu(), NeedlessWait),
    "to": (lambda x: x.to("cpu", torch.float64, non_blocking=True), NeedlessWait),
    "copy_": (lambda x: torch.empty(3, 4).copy_(x), NeedlessWait),
    "item": (lambda x: x.sum().item(), NeedlessWait),
    "tolist": (lambda x: x.tolist(), NeedlessWait),
    "bool": (lambda x: bool((x > 0).all()), NeedlessWait),
    "equal": (lambda x: torch.equal(x, x), NeedlessWait),
    "a mask": (lambda x: x[x > 0], NeedlessWait),
    "nonzero": (lambda x: x.nonzero(), NeedlessWait),
    "repeats": (lambda x: torch.repeat_interleave(x[0].long()), NeedlessWait),
    "numbers": (lambda x: x + torch.tensor([1.0, 2, 3, 4], device=x.device), NeedlessWait),
    "new_tensor": (lambda x: x.new_tensor([1.0]), NeedlessWait),
    "to the GPU": (lambda x: torch.ones(3).to(x.device), NeedlessWait),
    "ordinary memory": (lambda x: torch.ones(3).to(x.device, non_blocking=True), NeedlessWait),
    "synchronize": (lambda x: torch.cuda.synchronize(), NeedlessWait),
    "both devices": (lambda x: x + torch.ones(4), MixedDevices),
    "numbers as index": (lambda x: x[[0, 1]], NeedlessWait),
    "index of the host": (lambda x: x.index_select(0, torch.arange(2)), MixedDevices),
}


def _apply(name: str) -> None:
    DEFECTS[name][0](torch.empty(3, 4, device="cuda"))


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_errors(fake_gpu: Callable[..., Any], name: str) -> None:
    with pytest.raises(DEFECTS[name][1], match="in a test"):
        fake_gpu(_apply, name)


def _both_sides() -> None:
    host = torch.arange(6.0)
    assert host[host > 2].tolist() == [3, 4, 5] and host.sum().item() == 15
    x = host.pin_memory().to("cuda", non_blocking=True).requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = (x.view(2, 3) @ torch.randn(3, 5, device="cuda")).float().square().mean() * 2.0
    y.backward()
    assert (y.device, x.grad.device) == (torch.device("cuda:0"),) * 2
    assert (x.grad.shape, x.grad.dtype) == ((6,), torch.float32)


def test_host_and_gpu_work_side_by_side(fake_gpu: Callable[..., Any]) -> None:
    fake_gpu(_both_sides)


def test_places_of_waits_exist() -> None:
    for place in WAITS:
        file, _, function = place.partition(": ")
        tree = ast.parse((Path(ff.__file__).parent / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in names, place
