"""The tables of the CUDA kernels, with a compiler and with SASS that are made up."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CMAKE = Path(__file__).parents[1] / "cmake"
NAME = "scores_kernel<BFloat16, true>"
KEY = ("sm_90a", NAME)

# A loop of 5 instructions in one of 8, and a way for diverged warps that is outside of both.
CODE = [
    "MOV R1, c[0x0][0x28]",
    "outer: LDG.E.128.CONSTANT R4, [R2.64]",
    "LDGSTS.E.BYPASS.128 [R8], [R2.64]",
    "inner: LDSM.16.M88.4 R12, [R8]",
    "HMMA.16816.F32.BF16 R4, R12, R14, R4",
    "HMMA.16816.F32.BF16 R4, R12, R14, R4",
    "BRA.DIV UR4, diverged",
    "join: @P0 BRA inner",
    "@!P1 BRA P2, outer",
    "MUFU.EX2 R4, R4",
    "STG.E.U16 [R2.64], R4",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "EXIT",
    "end: BRA end",
    "diverged: WARPSYNC.COLLECTIVE R5, all",
    "all: BRA join",
    "NOP",
]
INSIDE = 4  # a place in both loops


@pytest.fixture
def sass(monkeypatch):
    monkeypatch.syspath_prepend(str(CMAKE))
    return importlib.import_module("sass_table")


def listing(code=tuple(CODE), registers=126, symbol="scores_kernel", architecture="sm_90a"):
    """What cuobjdump prints, with addresses for the labels."""
    named = [re.fullmatch(r"(?:(\w+): )?(.*)", line).groups() for line in code]
    address = {label: hex(16 * i) for i, (label, _) in enumerate(named) if label}
    lines = [
        f"\narch = {architecture}\n\nResource usage:\n Function {symbol}:",
        f"  REG:{registers} STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:376 TEXTURE:0",
        f"\n\tcode for {architecture}\n\t\tFunction : {symbol}",
        '\t.headerflags\t@"EF_CUDA_SM90"',
    ]
    for i, (_, text) in enumerate(named):
        text = re.sub(r"\w+$", lambda match: address.get(match[0], match[0]), text)
        lines.append(f"        /*{16 * i:04x}*/                   {text} ;  /* 0x00000a00 */")
        lines.append(" " * 60 + "/* 0x000fe400 */")
    return "\n".join(lines) + "\n"


def counted(sass, *arguments, **named):
    (kernel,) = sass.functions(listing(*arguments, **named))
    architecture, _, registers, code = kernel
    return {(architecture, NAME): sass.count(code, registers)}


def with_more(*added, at=INSIDE):
    return [*CODE[:at], *added, *CODE[at:]]


def without(word):
    return [line for line in CODE if word not in line]


ADD = "FADD R1, R2, R3"


def test_what_a_kernel_does_is_counted(sass):
    counts = counted(sass)[KEY]
    assert counts["registers"] == 126
    assert counts["instructions"] == len(CODE) - 1  # but for NOP
    assert counts["loops"] == [5, 8] and counts["loop_work"] == 2
    assert (counts["matrix"], counts["mufu"], counts["barriers"]) == (2, 1, 1)
    assert (counts["loads_128"], counts["async_copies"], counts["stores_16"]) == (1, 1, 1)
    assert (counts["matrix_loads"], counts["shared_loads"], counts["local"]) == (1, 0, 0)
    assert counts["membar"] == counts["errbar"] == counts["cctl"] == 0


def test_loops_without_matrices_count_their_exponentials(sass):
    code = [c.replace("HMMA.16816.F32.BF16", "MUFU.EX2") for c in CODE]
    counts = counted(sass, code)[KEY]
    assert counts["loops"] == [5, 8] and counts["loop_work"] == 2
    # Neither has work.
    code = [c.replace("HMMA.16816.F32.BF16", "FFMA") for c in CODE]
    assert counted(sass, code)[KEY]["loops"] == []


def test_every_kernel_and_architecture_is_found(sass):
    text = listing(symbol="a") + listing(architecture="sm_80", symbol="a") + listing(symbol="b")
    found = [(arch, name, regs, len(code)) for arch, name, regs, code in sass.functions(text)]
    whole = (126, len(CODE))
    assert found == [("sm_90a", "a", *whole), ("sm_80", "a", *whole), ("sm_90a", "b", *whole)]


@pytest.fixture
def limits(sass, tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"compiler": "", "hot": ["scores_kernel<BFloat16.*"], "limits": {}}))
    sass.write_limits(path, counted(sass), "13.0")
    return json.loads(path.read_text())


def test_the_limits_of_now_hold(sass, limits):
    assert sass.broken(counted(sass), limits, "13.0") == []
    assert limits["compiler"] == "13.0" and limits["hot"] == ["scores_kernel<BFloat16.*"]
    assert limits["limits"]["sm_90a"][NAME]["registers"] == 128


@pytest.mark.parametrize(
    ("code", "registers", "says"),
    [
        (with_more("MEMBAR.ALL.GPU"), 126, "membar: 1, the limit is 0"),
        (with_more("STL [R1], R5", at=1), 126, "local: 1, the limit is 0"),
        (with_more(ADD, ADD, ADD), 126, "loops of [8, 11] instructions, the limit is [6, 9]"),
        (with_more(ADD, ADD, at=2), 126, "loops of [5, 10] instructions, the limit is [6, 9]"),
        (with_more(ADD, ADD, at=1), 126, "instructions: 18, the limit is 17"),
        (with_more("HMMA.16816.F32 R4, R12, R14, R4"), 126, "matrix: 3, the limit is 2"),
        (without("HMMA"), 126, "matrix: 0, the limit is 2"),
        (without("BRA inner"), 126, "1 hot loops of [7] instructions, there were 2"),
        (CODE, 129, "registers: 129, the limit is 128"),
    ],
)
def test_what_breaks_a_limit_is_named(sass, limits, code, registers, says):
    wrong = sass.broken(counted(sass, code, registers), limits, "13.0")
    assert f"sm_90a {NAME}: {says}" in wrong


def test_a_margin_is_left_to_the_compiler(sass, limits):
    assert sass.broken(counted(sass, with_more(ADD), 128), limits, "13.0") == []


def test_less_work_in_a_loop_is_named(sass, limits):
    """The size of the loop is no measure of it then."""
    code = without("HMMA")
    code[1:1] = [CODE[INSIDE]]
    code[INSIDE + 1 : INSIDE + 1] = [CODE[INSIDE]]
    wrong = sass.broken(counted(sass, code), limits, "13.0")
    assert wrong == [f"sm_90a {NAME}: loop_work: 1, at least 2 are expected"]


def test_a_kernel_that_is_gone_or_new_is_named(sass, limits):
    (counts,) = counted(sass).values()
    renamed = {("sm_90a", "scores_kernel<BFloat16, false>"): counts}
    assert sass.broken(renamed, limits, "13.0") == [
        f"sm_90a {NAME}: there is no such kernel",
        "sm_90a scores_kernel<BFloat16, false>: a hot kernel without limits",
    ]
    other = {("sm_90a", "assignments_kernel<float>"): counts}
    assert "scores_kernel<BFloat16.*: no kernel is called so" in sass.broken(other, limits, "13.0")
    architecture = counted(sass) | {("sm_80", NAME): counts}
    wrong = sass.broken(architecture, limits, "13.0")
    assert wrong == [f"sm_80 {NAME}: a hot kernel without limits"]


def test_local_memory_is_allowed_to_no_kernel(sass, limits):
    (counts,) = counted(sass, with_more("LDL R5, [R1]")).values()
    kernels = counted(sass) | {("sm_90a", "assignments_kernel<float>"): counts}
    wrong = sass.broken(kernels, limits, "13.0")
    assert wrong == ["sm_90a assignments_kernel<float>: local: 1, the limit is 0"]


def test_another_compiler_is_held_to_what_no_compiler_may_do(sass, limits):
    code = with_more(ADD, ADD, ADD, "MEMBAR.ALL.GPU")
    wrong = sass.broken(counted(sass, code), limits, "12.8")
    assert wrong == [f"sm_90a {NAME}: membar: 1, the limit is 0"]


def test_the_committed_limits_know_every_architecture(sass):
    file = json.loads(sass.LIMITS.read_text())
    assert set(file["limits"]) == {"sm_80", "sm_90a", "sm_100"}
    for names in file["limits"].values():
        assert all(limits["local"] == 0 for limits in names.values())
        for pattern in file["hot"]:
            assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_limits_are_written_of_all_kernels_or_not_at_all(sass, limits, tmp_path):
    path = tmp_path / "limits.json"
    before = path.read_text()
    (counts,) = counted(sass).values()
    with pytest.raises(ValueError, match=r"no limits were written: no kernel is called scores_"):
        sass.write_limits(path, {("sm_90a", "assignments_kernel<float>"): counts}, "13.0")
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("options", "path", "says"),
    [
        (["missing.o"], None, "missing.o"),
        (["--nvcc", "/missing/nvcc", __file__], None, "--nvcc /missing/nvcc"),
        ([__file__], "", r"c\+\+filt, which names the kernels, is not in PATH"),
    ],
)
def test_what_the_table_needs_is_said(sass, options, path, says, monkeypatch, capsys):
    if path is not None:
        monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(sys, "argv", ["sass_table.py", *options])
    with pytest.raises(SystemExit) as ended:
        sass.main()
    assert ended.value.code == 2
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("wanted", "length"),
    [
        ({"HMMA": 2}, 5),
        ({"HMMA": 2, "LDGSTS": 1, "MUFU": 0}, 8),
        ({"HMMA": 3}, None),
        ({"HMMA": 2, "LDSM": 0}, None),
        ({"STAS": 1}, None),
    ],
)
def test_a_turn_has_what_is_wanted(sass, wanted, length):
    ((_, _, _, code),) = sass.functions(listing())
    assert importlib.import_module("sass_turns").turn(code, wanted) == length


def test_the_table_has_a_line_for_each_kernel(sass):
    head, line = sass.table(counted(sass)).splitlines()
    assert len(head) == len(line)
    assert line.startswith(NAME) and " 5 8 " in line and " 1/0/0/0 " in line


PTXAS = """ptxas info    : Compiling entry function '_Z1av' for 'sm_90a'
    {local} bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem
a.cu(3): warning #177-D: variable was declared but never referenced
"""
SERIAL = "ptxas info : wgmma.mma_async instructions are serialized due to a call in 'a'"


@pytest.mark.parametrize(
    ("log", "options", "status", "says"),
    [
        (PTXAS.format(local=8), [], 0, "warning: {} uses local memory"),
        (PTXAS.format(local=8), ["--strict"], 1, "error: {} uses local memory"),
        (PTXAS.format(local=0) + SERIAL, [], 0, f"warning: {SERIAL}"),
        (PTXAS.format(local=0) + SERIAL, ["--strict"], 1, f"error: {SERIAL}"),
        (PTXAS.format(local=0), ["--strict"], 0, None),
    ],
)
def test_slow_code_is_an_error_where_that_is_asked_for(log, options, status, says):
    compiler = [sys.executable, "-c", f"print({log!r})"]
    command = [sys.executable, str(CMAKE / "ptxas_table.py"), *options, *compiler]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == status
    name = re.search(r"^(.+?) +sm_90a +40 +128", result.stdout, re.MULTILINE)[1]
    assert "warning #177-D" in result.stdout and "spill stores" not in result.stdout
    found = re.findall(r"^(?:warning|error): .*", result.stdout, re.MULTILINE)
    assert found == ([] if says is None else [says.format(name)])


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_a_compiler_that_says_nothing_of_kernels_is_no_proof(options, status):
    command = [sys.executable, str(CMAKE / "ptxas_table.py"), *options, sys.executable, "-c", ""]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == status and ("-Xptxas=-v" in result.stdout) == bool(options)


def test_without_a_compiler_the_usage_is_shown():
    command = [sys.executable, str(CMAKE / "ptxas_table.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("Usage: ptxas_table.py")


def test_the_status_of_the_compiler_is_kept():
    compiler = [sys.executable, "-c", "print('a.cu(3): error'); raise SystemExit(2)"]
    command = [sys.executable, str(CMAKE / "ptxas_table.py"), "--strict", *compiler]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "a.cu(3): error" in result.stdout
