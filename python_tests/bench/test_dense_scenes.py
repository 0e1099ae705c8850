from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import dense_scenes
from bench.dense_scenes import able, coloured, encoders, main, settings_of, summary
from franca_fast.data.fashion_scenes import CLASS_NAMES
from franca_fast.errors import InputError
from franca_fast.evaluation.evaluate import protocols
from franca_fast.hub.save import save_backbone
from franca_fast.models import VisionTransformer
from franca_fast.rasa import FitSettings

MODEL = VisionTransformer(img_size=28, patch_size=7, embed_dim=32, depth=1, num_heads=2)


def test_protocols_of_patches_are_taken() -> None:
    assert "overclustering" in able(None)
    assert able(None).keys().isdisjoint({"knn", "logistic-regression", "retrieval"})
    assert list(able(["overclustering"])) == ["overclustering"]
    with pytest.raises(InputError, match=r"protocols: 'knn'; accepted: .*overclustering"):
        able(["knn"])


def test_sizes_are_the_scenes_and_settings_go_to_their_protocol() -> None:
    changed = ["overclustering.ks=11,20", "in-context.k=3"]
    expected = {"img_size": 112, "ks": "11,20"}
    assert settings_of(protocols()["overclustering"], changed) == expected


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len(set(dense_scenes.PALETTE)) == len(dense_scenes.PALETTE) == len(CLASS_NAMES)
    assert coloured(torch.tensor([[0, 1]])).getpixel((1, 0)) == dense_scenes.PALETTE[1]


def line(protocol: str, weights: str, **figures: float) -> dict[str, object]:
    return {
        "protocol": protocol,
        "weights": weights,
        "rasa": weights == "mine",
        "figures": {"8": figures},
        "standard_errors": {"8": {"a": 0.25}},
        "seconds": 2.4,
        "settings_that_differ_from_the_protocol": {"k": 3},
    }


def test_the_table() -> None:
    report = {
        "command": "python bench/dense_scenes.py mine",
        "dimensions": [8],
        "results": [
            line("p", "random", a=1.0, b=2.0),
            {"protocol": "q", "not run": "no boxes"},
            line("p", "mine", a=3.0),
            {"protocol": "q", "not run": "no boxes"},
        ],
    }
    lines = summary(report).splitlines()
    assert lines[0] == "`python bench/dense_scenes.py mine`"
    assert lines[4:] == [
        "| protocol | figure | weights | RASA | 8 | s |",
        "| --- | --- | --- | --- | ---: | ---: |",
        "| p | a | random | no | 1.0 +- 0.2 | 2 |",
        "| p | a | mine | yes | 3.0 +- 0.2 | 2 |",
        "| p | b | random | no | 2.0 | 2 |",
        "| p | b | mine | yes | - | 2 |",
        "",
        "Changed settings of `p`: k 3.",
        "`q` was not run: no boxes.",
    ]


def test_without_positions_to_remove_there_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise InputError("images: nothing to remove; accepted: something")

    monkeypatch.setattr(dense_scenes, "fit", refuse)
    monkeypatch.setattr(dense_scenes.ff, "load_model", lambda _: MODEL)
    found = [(weights, rasa, type(encoder)) for weights, rasa, encoder in encoders("mine")]
    kinds = [VisionTransformer, str] * 2
    names = ["random", "random", "mine", "mine"]
    assert found == list(zip(names, [False, True] * 2, kinds, strict=True))


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few seconds: scenes are made and encoded a dozen times."""
    few = "FashionScenes:split=TEST"
    monkeypatch.setattr(dense_scenes, "SOURCES", {"train": few, "test": few})
    quick = FitSettings(img_size=28, iterations=1, readout="covariance")
    monkeypatch.setattr(dense_scenes, "FitSettings", lambda img_size: quick)
    monkeypatch.setattr(dense_scenes, "SIDE", 28)
    monkeypatch.setattr(dense_scenes, "SIZES", {"img_size": 28})
    path = save_backbone(MODEL, tmp_path / "model")
    words = ["--set", "overclustering.ks=3", "--set", "overclustering.pixels=4"]
    words += ["--set", "overclustering.seeds=0,1", "--protocols", "overclustering"]
    command = ["dense_scenes.py", str(path), *words, "--dims", "4", "32", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    main()
    report = json.loads((tmp_path / "dense_scenes.json").read_text())
    assert [(one["weights"], one["rasa"]) for one in report["results"]] == [
        ("random", False),
        ("random", True),
        (path.name, False),
        (path.name, True),
    ]
    assert all(set(one["figures"]) == {"4", "32"} for one in report["results"])
    assert str(tmp_path) not in report["command"].partition("--out")[0]
    assert "mIoU K=3" in (tmp_path / "dense_scenes.md").read_text()
    assert (tmp_path / "dense_scenes.png").stat().st_size > 10_000
