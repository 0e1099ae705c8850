"""The verb that times the operators."""

from __future__ import annotations

import json

import pytest
import torch

from franca_fast.cli.main import main


def test_prints_a_table_and_writes_all_measurements(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("franca_fast.cli.bench._SECONDS", 0.0)
    path = tmp_path / "figures" / "bench.json"
    threads = torch.get_num_threads()
    try:
        words = ["bench", "--only", "sinkhorn fp32 N=64 K=8192", "--threads", "1"]
        assert main([*words, "--device", "cpu", "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(tuple("0123456789")) and "1 threads" in printed[0]
    assert [line.split()[4] for line in printed[2:]] == ["eager", "potentials", "assignments"]
    (result,) = json.loads(path.read_text())["results"]
    assert len(result["seconds"]["eager"]) == 5
    assert result["peak_extra_bytes"]["potentials"] <= 0.05 * result["logits_bytes"]


def test_a_work_that_does_not_exist_is_named(capsys):
    assert main(["bench", "--only", "nothing", "--device", "cpu"]) == 2
    assert "--only: 'nothing'; accepted: part of sinkhorn" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--threads", "0"], ["--device", "abacus"]])
def test_wrong_options_are_one_line(words, capsys):
    assert main(["bench", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
