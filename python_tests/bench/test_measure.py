"""One process that measures."""

from __future__ import annotations

import dataclasses

import torch

from bench.gpu import measure, record


def test_variants_are_warmed_and_skipped(monkeypatch, tmp_path):
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    which = ["--device=cpu", "--only=sinkhorn", "--variant=eager", "--variant=torch", "--warm"]
    measure.main([*which, "--skip=sinkhorn N=3 K=110::torch"])
    begun, warmed = record.read(tmp_path)
    where = {"part": "alone", "case": "sinkhorn N=3 K=110", "variant": "eager"}
    assert begun == {**where, "state": "begun"}
    assert warmed.keys() == {*where, "warm_seconds"}


def test_bytes_of_inputs_are_counted_whole():
    pair = dataclasses.make_dataclass("Pair", ["first", "second"])
    inputs = (torch.zeros(3), [pair(torch.zeros(2, dtype=torch.bfloat16), [torch.zeros(1)])])
    assert measure.size_of(inputs) == 12 + 4 + 4
