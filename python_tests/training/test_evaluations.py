from __future__ import annotations

import json
from pathlib import Path

import pytest

from franca_fast.config.files import load_config
from franca_fast.errors import InputError
from franca_fast.evaluation import evaluate
from franca_fast.hub import load_model
from franca_fast.training import pretrain
from franca_fast.training.evaluations import configured_evaluation
from python_tests.training.tiny import TINY

IMAGES = "FashionMNIST:split=TEST"


def test_without_any_there_is_none() -> None:
    assert configured_evaluation(load_config(None)) is None


def test_the_callers_own_comes_last() -> None:
    own = configured_evaluation(load_config(None), lambda step, _: {"step": step})
    assert own is not None and own(3, None) == {"step": 3}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["kn train=a test=b"], "protocol: 'kn'"),
        ([f"knn train=/absent test={IMAGES}"], "/absent"),
        (["knn train=a test=b", "knn train=a test=c"], "two of the name 'knn'; accepted: names"),
    ],
)
def test_lines_are_refused_before_training(lines: list[str], error: str) -> None:
    config = load_config(None)
    config.evaluation.protocols = lines
    with pytest.raises(InputError, match=error):
        configured_evaluation(config)


def test_figures_of_a_run(tmp_path: Path) -> None:
    config = load_config(TINY, ["evaluation.eval_period_iterations=4"])
    config.evaluation.protocols = [
        f"knn name=few train={IMAGES} test={IMAGES} ks=1 img_size=28 dims=32",
        f"retrieval query={IMAGES} img_size=28",
    ]
    pretrain(config, tmp_path / "run")
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    found = [line for line in lines if "evaluation/few/32/k=1" in line]
    assert [line["step"] for line in found] == [0, 4, 8]
    widths = {name.split("/")[2] for name in found[0] if name.startswith("evaluation/retrieval/")}
    assert widths == {"2", "4", "8", "16", "32"}
    data = {"train": IMAGES, "test": IMAGES}
    settings = {"ks": "1", "img_size": "28"}
    again = evaluate("knn", load_model(tmp_path / "run"), data, settings)
    assert found[-1]["evaluation/few/32/k=1"] == again.figures[32]["k=1"]
