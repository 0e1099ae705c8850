"""Fixtures shared by all tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from python_tests.fake_gpu import process_with_fake_gpu
from python_tests.helpers import DEVICE

GOLDEN = Path(__file__).parent / "golden"
if DEVICE.type != "cpu":
    # At once, for the tensors that tests make while they are imported.
    torch.set_default_device(DEVICE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Spells what a test logged, for names of files need not be UTF-8 and xdist sends only that."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Tensors computed with the released code, see golden/README.md."""
    return load_file(GOLDEN / "golden.safetensors", device=str(DEVICE))


@pytest.fixture(scope="session")
def golden_facts() -> dict[str, Any]:
    """Architecture, schedules and parameter groups of the released code."""
    return json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def fake_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`run(case, *args)`: calls a function of a test module where "cuda" is a fake GPU.

    It gives how often the host waited for that GPU, by place (see fake_gpu_waits.py).
    """
    with process_with_fake_gpu(tmp_path_factory.mktemp("fake_gpu")) as run:
        yield run
