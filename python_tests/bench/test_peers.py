"""The table beside peers, with and without them."""

from __future__ import annotations

import json
import sys

import pytest

from bench import peers

ROW = {
    "peer": "birder",
    "versions": {"ours": "abc", "birder": "0.8.4"},
    "median_seconds": {"ours": 0.1, "birder": 0.15},
    "peak_bytes": {"ours": 2**30, "birder": 2**31},
    "machine": {
        "cpu": "some",
        "threads": 2,
        "torch": "2",
        "date": "today",
        "command": "python",
        "load_average": [1.0],
    },
}


def test_what_is_not_installed_is_said_and_what_was_measured_stays(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    out = tmp_path / "peers.json"
    out.write_text(json.dumps({"step birder fp32": ROW}))
    monkeypatch.setattr(sys, "argv", ["peers.py", "--out", str(out)])
    assert peers.main() == 0
    assert json.loads(out.read_text()) == {"step birder fp32": ROW}
    assert "pip install lightly-train" in capsys.readouterr().out


def test_a_row_that_fails_costs_no_other(monkeypatch, tmp_path, capsys):
    def fails():
        raise peers.ChildError("it ended")

    well = {"seconds": {"birder": [3.0, 1.0, 2.0], "ours": [1.0]}}
    rows = [("bad", "birder", fails), ("sinkhorn N=64 fp32", "birder", lambda: well)]
    monkeypatch.setattr(peers, "rows", lambda options: rows)
    monkeypatch.setattr(peers, "version", lambda name: "0")
    monkeypatch.setattr(sys, "argv", ["peers.py", "--out", str(tmp_path / "peers.json")])
    assert peers.main() == 1
    assert "bad: it ended" in capsys.readouterr().err
    (row,) = json.loads((tmp_path / "peers.json").read_text()).values()
    assert row["median_seconds"] == {"birder": 2.0, "ours": 1.0}


def test_a_row_has_the_ratio_and_both_peaks():
    line = peers.markdown({"step birder fp32": ROW}).splitlines()[-1]
    cells = "birder 0.8.4 | 150.0 | ours | 100.0 | 1.50x | 2.00 | 1.00 | 1.0 |"
    assert line == f"| step birder fp32 | {cells}"
    assert line in peers.page({"step birder fp32": ROW})


@pytest.mark.parametrize("alone", [False, True])
def test_steps_are_those_of_both(monkeypatch, alone):
    asked = []

    class Stand:
        def __init__(self, name, module, arguments):
            self.name, self.about = name, {"version": "0"}

        def ask(self):
            asked.append(self.name)
            return {"seconds": 1.0, "peak_bytes": len(asked)}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("bench.turns.Child", Stand)
    monkeypatch.setattr(peers, "Child", Stand)
    options = peers.argparse.Namespace(alone=alone, steps=1, overrides=[])
    found = peers.steps_beside("lightly-train", "bf16", options)
    turns = ["ours", "lightly-train"]
    assert asked == (["ours"] * 2 + ["lightly-train"] * 2 if alone else turns * 2)
    assert found["seconds"] == {name: [1.0] for name in turns}
