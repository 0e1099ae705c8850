"""What the GPU benchmarks measure, and what they make of the figures."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import bench.gpu
import franca_fast as ff
from bench.gpu import choice, measure, parts, profile, record, report, steps, works
from bench.gpu.case import Setting
from franca_fast.backends.choices import COMMITTED, read_table

FOLDER = Path(bench.gpu.__file__).parent
UNNAMED = {"varlen_attn", "flash_attn"}  # there with PyTorch's and FlashAttention's own kernels


def timed(case, variant, ms, bytes_moved=0, operations=0, **more):
    figures = {"ms": ms, "bytes_moved": bytes_moved, "operations": operations}
    figures |= {"host_us": 1.0, "peak_bytes": 0}
    return {"part": "timings", "case": case, "variant": variant, **figures, **more}


ROWS = [
    timed("ceiling: copy", "device", 2.0, bytes_moved=4_000_000),  # 2 GB/s
    timed("ceiling: bf16 product", "device", 1.0, operations=8_000_000),  # 8 GFLOP/s
    timed("sinkhorn", "cuda", 5.0, bytes_moved=8_000_000, graph_ms=4.0),
    timed("sinkhorn", "eager", 20.0, bytes_moved=8_000_000),
    timed("scores", "cuda", 2.0, bytes_moved=1_000_000, operations=8_000_000),
    timed("scores", "library", 1.0, bytes_moved=1_000_000, operations=8_000_000),
    {"part": "timings", "case": "loss", "variant": "eager", "error": "ended with status -6"},
    timed("loss", "cuda", 1.0, bytes_moved=1_000_000),
]


def test_shares_and_speedups():
    found = {(row["case"], row["variant"]): row for row in report.with_shares(ROWS)}
    sinkhorn, scores = found["sinkhorn", "cuda"], found["scores", "cuda"]
    assert sinkhorn["speedup"] == 4.0 and sinkhorn["roofline_share"] == pytest.approx(0.8)
    assert sinkhorn["graph_roofline_share"] == pytest.approx(1.0)
    # The product takes longer than the traffic.
    assert scores["speedup"] == 0.5 and scores["roofline_share"] == pytest.approx(0.5)
    text = report.table(ROWS)
    assert "| sinkhorn | cuda | 5.0000 | 4.00x | 80% | 4.0000 | 100% | 1 | 2 |" in text


def test_a_baseline_that_failed_is_not_used():
    loss = next(row for row in report.with_shares(ROWS) if row["case"] == "loss")
    assert "speedup" not in loss and loss["roofline_share"] == pytest.approx(0.5)
    text = report.table(ROWS)
    assert "| loss | eager | ended with status -6 |" in text
    assert "| loss | cuda | 1.0000 |  | 50% |" in text


def test_shares_wait_for_the_ceilings():
    found = report.with_shares(ROWS[1:])
    assert not any("roofline_share" in row for row in found)
    assert any("speedup" in row for row in found)


def step(backend, ms, **more):
    figures = {"step_ms": ms, "in_a_row_ms": ms, "host_ms": ms, "images_per_second": 1.0}
    where = {"part": "steps", "recipe": "vits14", "backend": backend, "batch_size": 2}
    return where | figures | {"loss": 1.0} | more


def test_steps_are_compared_with_the_reference():
    failed = {"part": "steps", "recipe": "vits14", "backend": "triton", "batch_size": 2}
    rows = [step("cuda", 50.0), failed | {"error": "why"}, step("torch", 200.0)]
    text = report.table(rows)
    assert "| vits14 | 2 | cuda | 50.0 | 50.0 | 50.0 | 1 | 4.00x |" in text
    assert "| vits14 | 2 | triton | why |" in text
    assert "x |" not in report.table([step("cuda", 50.0)])


DONE = {"part": "a", "state": "done", "seconds": 1.0}


@pytest.mark.parametrize(
    "row",
    [
        {"part": "b", "state": "waiting"},
        {"part": "b", "state": "begun"},
        {"part": "b", "state": "not run", "why": "out of time"},
        {"part": "b", "state": "failed", "why": "status 3", "said": ""},
        {"part": "a", "check": "loss", "passed": False},
        {"part": "a", "test": "test_it", "outcome": "failed", "said": "why"},
        {"part": "a", "case": "loss", "variant": "cuda", "error": "out of memory"},
        {"part": "a", "recipe": "vits14", "backend": "cuda", "batch_size": 2, "error": "why"},
    ],
    ids=str,
)
def test_one_failure_is_a_failure(row):
    well = [DONE, {"part": "a", "check": "scores", "passed": True, "error": 0.1, "allowed": 1.0}]
    assert report.all_well(well)
    assert not report.all_well([*well, row])
    assert "could not be written" not in report.table([*well, row])


@pytest.mark.parametrize(
    ("last", "name"), [("waiting", "not begun"), ("not run", "not run"), ("begun", "begun, not")]
)
def test_figures_of_an_earlier_session_are_called_so(last, name):
    rows = [DONE, timed("loss", "cuda", 1.0) | {"part": "a"}, {"part": "b", "state": last}]
    assert f"| b | {name}" in report.table(rows) and report.EARLIER not in report.table(rows)
    again = report.table([*rows, {"part": "a", "state": last}])
    assert (f"| a | {name}{report.EARLIER} |" in again) == (last != "begun")


def test_a_row_of_an_unknown_form_costs_its_section_only():
    text = report.table([DONE, {"part": "a", "test": "test_it"}, *ROWS])
    assert "could not be written: KeyError" in text
    assert "| a | done |" in text and "| sinkhorn | cuda |" in text


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


def test_variants_are_warmed_and_skipped(monkeypatch, tmp_path):
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    which = ["--device=cpu", "--only=sinkhorn", "--variant=eager", "--variant=torch", "--warm"]
    measure.main([*which, "--skip=sinkhorn N=3 K=110::torch"])
    begun, warmed = record.read(tmp_path)
    where = {"part": "alone", "case": "sinkhorn N=3 K=110", "variant": "eager"}
    assert begun == {**where, "state": "begun"}
    assert warmed.keys() == {*where, "warm_seconds"}


def test_slow_steps_are_timed_less_often(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(steps.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        def step(i):
            clock[0] += seconds

        return step

    assert steps.timed_steps(takes(1.5), 4.0) == [1.5] * steps.FEWEST_STEPS
    assert len(steps.timed_steps(takes(0.8), 4.0)) == 5
    assert len(steps.timed_steps(takes(0.1), 4.0)) == steps.MOST_STEPS


RAW = """"ID","Kernel Name","gpu__time_duration.sum","smsp__inst_executed.sum"
"","","ns","inst"
"0","void scores_kernel<BFloat16, 1>(Heads, float)","29,120","640"
"""
SOURCE = f""""Kernel Name","void scores_kernel<BFloat16, 1>(Heads)"
"#","Address","Source","{profile.SAMPLES}","Instructions Executed"
"1","7f0010","      MOV R1, c[0x0][0x28]","0","8"
"2","7f0020","@P0   BRA 0x7f0010","1,200","8"
"3","7f0030","      HMMA.16816.F32 R4, R8, R9, R4","300","8"
"Kernel Name","void scores_kernel<BFloat16, 1>(Heads)"
"#","Address","Source","{profile.SAMPLES}","Instructions Executed"
"1","7f0010","      MOV R1, c[0x0][0x28]","1","8"
"""


def test_counters_of_ncu():
    (row,) = profile.counters(RAW)
    assert row["kernel"] == "scores_kernel<BFloat16, 1>"
    assert row["gpu__time_duration.sum"] == "29,120" and row["smsp__inst_executed.sum"] == "640"
    assert "29,120" in report.table([{"part": "profile", **row}])


def test_the_instructions_with_most_samples_come_first():
    title, *lines = "\n".join(profile.hottest(SOURCE)).strip().splitlines()
    assert title == "scores_kernel<BFloat16, 1>: 1500 samples at 3 instructions"
    assert [line.split()[0] for line in lines] == ["0x0010", "0x0020", "0x0000"]
    assert lines[0].split()[1:3] == ["1200", "80.0%"] and "@P0   BRA" in lines[0]


NCU = """#!{python}
import pathlib, sys
if "--import" in sys.argv:
    pages = {pages!r}
    print(pages[sys.argv[sys.argv.index("--page") + 1]])
else:
    pathlib.Path(sys.argv[sys.argv.index("--export") + 1]).touch()
"""


@pytest.mark.parametrize("source", [SOURCE, "another form"])
def test_pages_of_ncu_go_to_the_record_and_the_log(source, monkeypatch, tmp_path, capsys):
    pages = {"raw": RAW, "details": "all details", "source": source}
    program = tmp_path / "ncu"
    program.write_text(NCU.format(python=sys.executable, pages=pages))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setattr(profile, "REPORT", tmp_path / "report.ncu-rep")
    monkeypatch.setattr(sys, "argv", ["profile"])
    assert profile.main() == 0
    assert [row["kernel"] for row in record.read(tmp_path) if "kernel" in row] == [
        "scores_kernel<BFloat16, 1>"
    ]
    said = capsys.readouterr().out
    assert "all details" in said
    assert "1500 samples" in said if source == SOURCE else "another form" in said


def test_every_hot_kernel_is_profiled():
    limits = json.loads((parts.ROOT / "csrc" / "cuda" / "sass_limits.json").read_text())["limits"]
    left_out = [name for name in limits["sm_90a"] if not re.search(profile.KERNELS, name)]
    assert left_out == ["column_mass_kernel<BFloat16>"]  # for cards without clusters


def test_another_page_of_ncu_is_noticed():
    with pytest.raises(ValueError, match="no kernel"):
        list(profile.hottest("==ERROR== unknown page\n"))


def test_the_fastest_kernels_are_written_for_the_card(tmp_path):
    times = {
        (size, length): {"cuda": length * size, "triton": 1.1 * length * size, "torch": 200 * size}
        for size in choice.HEAD_DIMS
        for length in choice.LENGTHS
    }
    own, attention = choice.attention_entry(times)
    assert own == "cuda"
    operators = choice.operator_entry({"sinkhorn": {"cuda": 2.0, "triton": 1.0}})
    path = tmp_path / "table.json"
    for card in ("an older card", "a card"):  # a second measurement replaces the first
        choice.write_entries(path, "9.0", card, operators, attention)
    table, committed = read_table(path), read_table(COMMITTED)
    assert table.attention["9.0"]["64"] == ["own", "own", "torch", "torch", "torch"]
    assert table.attention["8.0"] == committed.attention["8.0"]
    assert table.backend("sinkhorn", (9, 0)) == "triton"
    assert "measured on a card" in table.origin_of((9, 0)) and "older" not in str(table.origin)
    assert table.origin_of((8, 0)) == committed.origin_of((8, 0))


def test_the_table_of_choices_is_kept_beside_the_record(monkeypatch, tmp_path):
    times = {"cuda": 2.0, "triton": 1.0, "torch": 3.0}
    attention = [(size, length, times) for size in choice.HEAD_DIMS for length in choice.LENGTHS]
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setattr(choice, "operator_times", lambda _: [("sinkhorn", times)])
    monkeypatch.setattr(choice, "attention_times", lambda _: attention)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    table = tmp_path / "checkout" / "choices.json"
    monkeypatch.setattr(sys, "argv", ["choice", "--out", str(table)])
    assert choice.main() == 0
    assert (tmp_path / "choices.json").read_text() == table.read_text()
    assert read_table(tmp_path / "choices.json").backend("sinkhorn", (9, 0)) == "triton"


def test_without_kernels_of_ours_attention_is_all_pytorchs():
    times = {(64, length): {"torch": 1.0} for length in choice.LENGTHS}
    assert choice.attention_entry(times) == ("torch", {"64": ["torch"] * len(choice.LENGTHS)})


def test_every_bucket_is_measured_at_a_length_of_its_own():
    longest = read_table(COMMITTED).longest
    buckets = [sum(length > bound for bound in longest) for length in choice.LENGTHS]
    assert buckets == list(range(len(longest) + 1))


def test_no_file_imports_itself_over_others():
    """Also not inside functions."""
    imports = {}
    for path in FOLDER.glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        own = [n for n in nodes if n.level == 1]
        imports[path.stem] = {n.module for n in own if n.module} | {
            alias.name for n in own if not n.module for alias in n.names
        }
    while free := {name for name, needed in imports.items() if not needed & set(imports)}:
        imports = {name: needed for name, needed in imports.items() if name not in free}
    assert not imports


def test_bytes_of_inputs_are_counted_whole():
    pair = dataclasses.make_dataclass("Pair", ["first", "second"])
    inputs = (torch.zeros(3), [pair(torch.zeros(2, dtype=torch.bfloat16), [torch.zeros(1)])])
    assert measure.size_of(inputs) == 12 + 4 + 4
