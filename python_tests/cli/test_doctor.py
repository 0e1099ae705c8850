from __future__ import annotations

from pathlib import Path

import pytest


def test_doctor(run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("doctor").out
    for word in (
        "torch",
        "threads",
        "busy cores",
        "pyarrow",
        "sinkhorn",
        "varlen_attention",
        "GPU",
        "autocast=auto",
    ):
        assert word in out
    monkeypatch.setenv("FRANCA_FAST_BACKEND", "torch")
    lines = [line for line in run("doctor").out.splitlines() if line.startswith("sinkhorn")]
    assert [line.split()[2:4] for line in lines if "*" in line] == [["torch", "*"]]


def test_doctor_shows_which_kernels_are_chosen_on_a_gpu_and_why(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [line.strip() for line in run("doctor").out.splitlines()]
    row = next(i for i, line in enumerate(lines) if line.startswith("9.0  "))
    assert "streamed_clustering on triton" in lines[row]
    assert "9.0 measured on NVIDIA H100" in lines[row + 1]
    own = tmp_path / "own.json"
    own.write_text(
        '{"origin": ["8.6 is ours."], "operators": {"8.6": {"sinkhorn": "torch"}}, '
        '"longest": [], "attention": {}}'
    )
    monkeypatch.setenv("FRANCA_FAST_CHOICES", str(own))
    out = run("doctor").out
    assert "8.6  sinkhorn on torch" in out and "8.6 is ours." in out
    assert "streamed_clustering on triton" not in out
    monkeypatch.setenv("FRANCA_FAST_CHOICES", str(tmp_path / "missing.json"))
    outcome = run("doctor")  # what it could find out stays
    assert outcome.code == 2 and "Operators" in outcome.out
    assert f"FRANCA_FAST_CHOICES: {tmp_path / 'missing.json'}" in outcome.err
