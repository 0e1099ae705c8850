"""What a report makes of the figures."""

from __future__ import annotations

import pytest

from bench.gpu import report
from bench.gpu.runner import Session
from python_tests.bench.sessions import python


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_report_says_where_it_comes_from(device, tmp_path):
    session = Session(tmp_path / "out", tmp_path / "scratch", device, 60)
    assert session.run([[python("part", "")]])
    text = (tmp_path / "out" / report.TABLE).read_text()
    assert text.startswith("# A dry run on the CPU" if device == "cpu" else "# A session on a GPU")
