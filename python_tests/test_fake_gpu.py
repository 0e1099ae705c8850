"""The fake GPU itself: what it lets pass and what it refuses."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import franca_fast as ff
from franca_fast.evaluation.image import cosine, knn
from franca_fast.evaluation.image.knn import knn_votes
from franca_fast.rasa import FitSettings
from franca_fast.rasa.patch_tokens import CachedFeatures
from franca_fast.rasa.positions import Moments
from franca_fast.rasa.readout import Readout
from python_tests.fake_gpu import MixedDevices
from python_tests.fake_gpu_waits import WAITS, NeedlessWait

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
    "assigning where a mask says": (lambda x: _assign(x, x > 0, x.new_ones(3)), NeedlessWait),
    "a number of the GPU there": (lambda x: _assign(x, x > 0, x.sum()), NeedlessWait),
    "a mask of bytes": (lambda x: _assign(x, (x > 0).byte(), x.new_ones(3)), NeedlessWait),
    "a mask of columns": (lambda x: _assign(x, (slice(0, 2), x[0] > 0), x[:2]), NeedlessWait),
    "index_put_": (lambda x: x.index_put_((x > 0,), x.new_ones(3)), NeedlessWait),
    "index_put": (lambda x: x.index_put((x > 0,), x.new_ones(3)), NeedlessWait),
    "a number at places": (lambda x: _assign(x, x[0].long(), 0.0), NeedlessWait),
    "assigning from the host": (lambda x: _assign(x, x[0].long(), torch.ones(4)), MixedDevices),
    "masked_fill": (lambda x: x.masked_fill(x > 0, x.sum()), NeedlessWait),
    "index_fill": (lambda x: x.index_fill(0, x[0].long(), x.sum()), NeedlessWait),
    "print": (lambda x: print(x), NeedlessWait),
    "repr": (lambda x: repr(x), NeedlessWait),
    "str": (lambda x: str(torch.nn.Parameter(x)), NeedlessWait),
    "an f-string": (lambda x: f"{x}", NeedlessWait),
    "an f-string of a number": (lambda x: f"{x.sum():.3f}", NeedlessWait),
    "inverse": (lambda x: torch.inverse(x[:, :3]), NeedlessWait),
    "inv": (lambda x: torch.linalg.inv(x[:, :3]), NeedlessWait),
    "inv_ex": (lambda x: torch.linalg.inv_ex(x[:, :3], check_errors=True), NeedlessWait),
    "solve": (lambda x: torch.linalg.solve(x[:, :3], x), NeedlessWait),
    "lstsq": (lambda x: torch.linalg.lstsq(x, x), NeedlessWait),
    "cholesky": (lambda x: torch.linalg.cholesky(x[:, :3]), NeedlessWait),
    "eigh": (lambda x: torch.linalg.eigh(x[:, :3]), NeedlessWait),
    "eig": (lambda x: torch.linalg.eig(x[:, :3]), NeedlessWait),
    "svd": (lambda x: torch.linalg.svd(x), NeedlessWait),
    "svdvals": (lambda x: torch.linalg.svdvals(x), NeedlessWait),
    "spectral norm": (lambda x: torch.linalg.matrix_norm(x, 2), NeedlessWait),
    "pinv": (lambda x: torch.linalg.pinv(x), NeedlessWait),
    "matrix_exp": (lambda x: torch.matrix_exp(x[:, :3]), NeedlessWait),
    "histc": (lambda x: torch.histc(x, 10), NeedlessWait),
    "multinomial": (lambda x: torch.multinomial(x, 2), NeedlessWait),
    "normal": (lambda x: torch.normal(0.0, x), NeedlessWait),
    "empty_cache": (lambda x: torch.cuda.empty_cache(), NeedlessWait),
    "a stream": (lambda x: torch.cuda.current_stream().synchronize(), NeedlessWait),
    "backward": (lambda x: (x.requires_grad_() * 2).backward(torch.ones(3, 4)), MixedDevices),
    "backward of a number": (
        lambda x: (x.requires_grad_() * 2).sum().backward(torch.ones(())),
        NeedlessWait,
    ),
    "grad": (
        lambda x: torch.autograd.grad(2 * x.requires_grad_(), x, torch.ones(3, 4)),
        MixedDevices,
    ),
}
# What looks like a defect and is none.
FINE: dict[str, Callable[[Tensor], Any]] = {
    "a number where a mask says": lambda x: _assign(x, x > 0, 0.0),
    "a number in a row": lambda x: _assign(x, 0, 5.0),
    "tensors at places": lambda x: _assign(x, x[0].long(), x[:1]),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "inv_ex": lambda x: torch.linalg.inv_ex(x[:, :3]),
    "histc with a range": lambda x: torch.histc(x, 10, 0, 1),
    "multinomial, repeated": lambda x: torch.multinomial(x, 2, replacement=True),
    "normal": lambda x: torch.normal(x, 1.0),
    "quantile, whose fake shows tensors": lambda x: x.quantile(0.5),
    "backward": lambda x: (x.requires_grad_() * 2).backward(x.detach()),
}


def _assign(x: Tensor, place: Any, value: Any) -> None:
    x[place] = value


def _apply(name: str) -> None:
    DEFECTS[name][0](torch.empty(3, 4, device="cuda"))


def _apply_all_that_is_fine() -> None:
    for work in FINE.values():
        work(torch.empty(3, 4, device="cuda"))


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_errors(fake_gpu: Callable[..., Any], name: str) -> None:
    with pytest.raises(DEFECTS[name][1], match="in a test"):
        fake_gpu(_apply, name)


def test_what_is_fine_is_no_error(fake_gpu: Callable[..., Any]) -> None:
    assert fake_gpu(_apply_all_that_is_fine) == {}


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


def _read(x: Tensor) -> Tensor:
    """Waits four times, where its caller may."""
    assert x.sum().item() and f"{x.sum():.3f}" and repr(x) and x.tolist()
    return x


def _read_votes(*args: Any) -> Iterator[dict[int, Tensor]]:
    for votes in knn_votes(*args):
        yield {k: _read(v) for k, v in votes.items()}


def _wait_in_knn() -> None:
    with (
        mock.patch.object(cosine, "_SIMILARITIES_AT_ONCE", 60 * 7),
        mock.patch.object(knn, "knn_votes", _read_votes),
        torch.device("cuda"),
    ):
        labels = torch.zeros(60, dtype=torch.int64)
        knn.knn_predict(torch.randn(60, 16), labels, torch.randn(31, 16), (1,), 0.07)


def _wait_in_readout() -> None:
    x = torch.randn(4, 5, 6, 8, device="cuda")
    settings = FitSettings(readout="linear", epochs=2, batch_size=2)
    with mock.patch.object(CachedFeatures, "batches", lambda *_: iter([x[:2].flatten(1, 2)] * 2)):
        Readout(CachedFeatures(torch.ones(4, 5, 6, 8)), settings).find(
            None, 0, lambda _: _read(x[0, 0])
        )


def _wait_in_moments() -> None:
    Moments((_read(torch.randn(2, 4, device="cuda"))[None] for _ in range(5)), torch.zeros(2, 2))


# Waits for every batch at places that may wait; how often they do when 4 waits are planted.
OFTEN: dict[str, tuple[Callable[[], None], dict[str, int]]] = {
    "knn": (_wait_in_knn, {"evaluation/image/knn.py: knn_predict": 1 + 4 * 5}),
    "readout": (
        _wait_in_readout,
        {"rasa/readout.py: __init__": 2, "rasa/readout.py: _train": 5 + 4 * 4},
    ),
    "moments": (_wait_in_moments, {"rasa/positions.py: __init__": 4 + 4 * 5}),
}


@pytest.mark.parametrize("name", OFTEN)
def test_waits_are_counted(fake_gpu: Callable[..., Any], name: str) -> None:
    work, expected = OFTEN[name]
    assert fake_gpu(work) == expected


def test_places_of_waits_exist() -> None:
    for place in WAITS:
        file, _, function = place.partition(": ")
        tree = ast.parse((Path(ff.__file__).parent / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in names, place


def test_waits_of_every_place_are_counted() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert [
        place for place, wait in WAITS.items() if wait.counted and f'"{place}"' not in tests
    ] == []
