"""When the compiled core offers itself, and what happens without it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import franca_fast as ff
from franca_fast import _C
from franca_fast.backends import cpu as compiled


def run(code: str, **environment: str) -> str:
    """Standard output of Python code in a process of its own."""
    completed = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout + completed.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_runs_on_cpu_tensors(dtype):
    assert compiled.unavailable("sinkhorn", torch.empty(0, dtype=dtype)) is None


def test_leaves_float64_to_torch():
    reason = compiled.unavailable("sinkhorn", torch.empty(0, dtype=torch.float64))
    assert reason == "it reads float32, bfloat16, float16"


def test_is_for_its_own_device():
    assert "cpu tensors" in compiled.unavailable("sinkhorn", torch.empty(0, device="meta"))


def test_without_the_core_torch_runs_and_one_warning_says_so():
    out = run(
        "import sys; sys.modules['franca_fast._C'] = None\n"
        "import torch, franca_fast as ff\n"
        "for n in (3, 4):\n"
        "    q = ff.ops.sinkhorn_knopp(torch.zeros(n, 5), 0.1)\n"
        "    q = ff.ops.sinkhorn_knopp(torch.zeros(n, 5, dtype=torch.bfloat16), 0.1)\n"
        "print(q.sum().item())"
    )
    assert out.count("without its compiled core") == 1
    assert "4.0" in out


def test_without_the_core_importing_is_silent():
    out = run("import sys; sys.modules['franca_fast._C'] = None; import franca_fast.backends")
    assert out == ""


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_environment_chooses_the_instruction_set(isa):
    code = "from franca_fast import _C; print(_C.cpu_isa())"
    assert run(code, FRANCA_FAST_CPU_ISA=isa).strip() == isa


def test_unknown_instruction_set_in_the_environment_is_named():
    code = (
        "import torch, franca_fast as ff\n"
        "try:\n"
        "    ff.ops.sinkhorn_knopp(torch.zeros(3, 5), 0.1)\n"
        "except ff.errors.FrancaError as error:\n"
        "    print(error)"
    )
    out = run("import franca_fast.errors\n" + code, FRANCA_FAST_CPU_ISA="mmx")
    assert out.startswith("FRANCA_FAST_CPU_ISA: CPU instruction set 'mmx'")
    assert "portable" in out


def test_unknown_instruction_set_is_refused():
    before = _C.cpu_isa()
    with pytest.raises(ValueError, match="'mmx' is unknown"):
        _C.set_cpu_isa("mmx")
    assert _C.cpu_isa() == before


def test_is_chosen_for_cpu_tensors():
    chosen = {row.backend for row in ff.backend_table() if row.device == "cpu" and row.chosen}
    assert "cpu" in chosen
