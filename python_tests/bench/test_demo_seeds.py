"""The demo with several seeds: what is run, and the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench import demo_seeds


def test_a_run_and_a_column_for_each_seed(monkeypatch, tmp_path, capsys):
    commands, environments = [], []

    def run(command, *, env, **_):
        commands.append(command)
        environments.append(env)
        folder, full = Path(command[5]), 80.0 + len(commands)
        folder.mkdir()
        after = {"8": {"20": 60.0}, "128": {"20": full}}
        pixels = {"raw pixels": {"20": 78.8}, "centred": {"20": 81.0}}
        results = {"steps": 9, "training_seconds": 90, "knn_after": after, "knn_pixels": pixels}
        (folder / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(subprocess, "run", run)
    words = ["--seeds", "5", "6", "--threads", "2", "--out", str(tmp_path), "dino.MRL=true"]
    monkeypatch.setattr(sys, "argv", ["demo_seeds.py", *words])
    demo_seeds.main()
    assert [command[6:] for command in commands] == [
        ["train.seed=5", "dino.MRL=true"],
        ["train.seed=6", "dino.MRL=true"],
    ]
    assert [env["OMP_NUM_THREADS"] for env in environments] == ["2", "2"]
    report = json.loads((tmp_path / "seeds.json").read_text())
    assert report["seeds"]["6"]["knn_after"]["128"]["20"] == 82.0
    table = (tmp_path / "seeds.md").read_text()
    assert "| 128 | 81.0 | 82.0 | 81.5 | 0.7 |" in table
    assert "| 8 | 60.0 | 60.0 | 60.0 | 0.0 |" in table
    assert "| minutes | 1.5 | 1.5 | 1.5 |  |" in table
    assert "78.8 (raw pixels) and 81.0 (centred)" in table
    assert capsys.readouterr().out.strip() == table.strip()
