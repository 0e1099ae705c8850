from __future__ import annotations

from pathlib import Path

import pytest
import torch

import franca_fast as ff
from franca_fast.cli.eval import _ROLES
from franca_fast.errors import InputError
from franca_fast.evaluation.evaluate import evaluate, find_protocol, protocols
from franca_fast.evaluation.protocol import Reading, parse_settings
from franca_fast.models import VisionTransformer

PROTOCOLS = """
in-context keypoints knn linear linear-segmentation logistic-regression object-discovery ood
overclustering retrieval video
"""


def test_all_protocols_are_found() -> None:
    assert sorted(protocols()) == PROTOCOLS.split()


@pytest.mark.parametrize("name", PROTOCOLS.split())
def test_every_protocol_can_be_asked_for(name: str) -> None:
    protocol = find_protocol(name)
    assert protocol.name == name and protocol.summary and "\n" not in protocol.summary
    assert {role.name for role in protocol.roles} <= set(_ROLES)
    assert parse_settings(protocol.settings, {}) == protocol.settings()


def test_an_unknown_protocol() -> None:
    with pytest.raises(InputError, match=r"protocol: 'in_context' .did you mean 'in-context'"):
        find_protocol("in_context")


def test_a_result_says_what_it_depends_on(model: VisionTransformer, images: Path) -> None:
    data = {"train": images, "test": str(images)}
    result = evaluate("knn", model, data, {"ks": "1,3", "temperature": 0.1}, dims=[4, 32])
    assert list(result.figures) == [4, 32] and result.figures[32]["k=1"] == 100.0
    assert result.changed == {"ks": (1, 3), "temperature": 0.1}
    assert result.encoder["model"] == "VisionTransformer"
    assert len(result.encoder["weights_sha256"]) == 64 and result.seconds > 0
    assert result.data["test"]["images"] == 5 and result.data["test"]["classes"] == 2


def test_models_by_path_and_the_papers_figure(
    model: VisionTransformer, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ff.hub.save_backbone(model, tmp_path / "model")
    data = {"train": images, "test": images}
    assert evaluate("knn", tmp_path / "model", data, {"ks": "1"}).encoder["model"] == str(
        tmp_path / "model"
    )
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "val").symlink_to(images)
    data["test"] = f"ImageNet:split=VAL:root={tmp_path / 'imagenet'}"
    result = evaluate("knn", model, data, {"ks": "1"}, name="franca_vitb14")
    assert result.paper == {"best k": 79.5} and "79.5" in result.table()


def test_wrong_data_and_settings_are_refused_before_the_model_is_loaded(images: Path) -> None:
    for data, settings, error in (
        ({"train": images}, {}, "data of knn: no test"),
        ({"train": images, "test": images}, {"k": "1"}, "setting: 'k'"),
        ({"train": images, "test": images}, {"ks": "0"}, "ks: .0,.; accepted"),
    ):
        with pytest.raises(InputError, match=error):
            evaluate("knn", "absent", data, settings)


def test_a_width_that_the_model_lacks_is_refused_before_an_image_is_read(
    model: VisionTransformer, images: Path
) -> None:
    handle = model.patch_embed.register_forward_pre_hook(lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match=r"dims: \(8, 33\); accepted: each from 1 to the width 32"):
        evaluate("knn", model, {"train": images, "test": images}, dims=(8, 33))
    handle.remove()


def test_features_are_taken_from_the_cache(
    model: VisionTransformer, images: Path, tmp_path: Path
) -> None:
    data = {"train": images, "test": images}
    reading = Reading(features_cache=tmp_path / "cache")
    first = evaluate("knn", model, data, {"ks": "1"}, reading=reading)
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    layer = model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    again = evaluate("knn", model, data, {"ks": "1"}, reading=reading)
    assert again.figures == first.figures and not calls
    next(images.rglob("*.png")).touch()  # another time of change: perhaps another image
    evaluate("knn", model, data, {"ks": "1"}, reading=reading)
    assert calls
    handle.remove()
    layer.remove()


def test_a_callable_is_enough(images: Path) -> None:
    data = {"train": images, "test": images}
    result = evaluate("knn", lambda x: torch.flatten(x, 1)[:, :64], data, {"img_size": "28"})
    assert list(result.figures) == [64] and "weights_sha256" not in result.encoder


def test_features_of_a_callable_are_not_kept(images: Path, tmp_path: Path) -> None:
    data, reading = {"train": images, "test": images}, Reading(features_cache=tmp_path / "cache")
    with pytest.raises(InputError, match=r"with an encoder that is no torch\.nn"):
        evaluate("knn", lambda x: torch.flatten(x, 1)[:, :64], data, reading=reading)
