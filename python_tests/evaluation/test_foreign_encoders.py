"""What encoders of all other libraries have in common; each library has tests of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import load_encoder
from franca_fast.evaluation.foreign_encoders import library, one_line
from franca_fast.evaluation.timm_encoders import TimmEncoder
from franca_fast.hub.projector import PositionProjector
from franca_fast.models import VisionTransformer
from python_tests.evaluation.timm_stand_in import Transformer

IMAGES = torch.randn(2, 3, 28, 28)


def test_a_library_that_is_there_is_imported() -> None:
    assert library("torch", "x") is torch


@pytest.mark.parametrize(("said", "line"), [("one\n  two ", "one two"), ("", "ValueError")])
def test_what_is_said_becomes_one_line(said: str, line: str) -> None:
    assert one_line(ValueError(said)) == line


def test_what_is_said_at_length_is_cut() -> None:
    line = one_line(ValueError("word " * 200))
    assert line.startswith("word word") and line.endswith("word ...") and 290 < len(line) <= 300


def test_the_network_is_shared_and_copies_are_their_own() -> None:
    model = Transformer(dynamic_img_size=True).eval()
    encoder = TimmEncoder(model)
    copied = copy.deepcopy(encoder)
    with torch.no_grad():
        before = encoder(IMAGES)
        nn.init.zeros_(model.norm.weight)
        nn.init.ones_(model.norm.bias)
        assert torch.equal(encoder(IMAGES), torch.ones(2, 32))
        assert torch.equal(copied(IMAGES), before)
        (layer,) = copied.get_intermediate_layers(IMAGES, 1)  # by the hooks of the copy's blocks
        assert torch.equal(layer, copied.forward_features(IMAGES)["x_norm_patchtokens"])


def test_hooks_are_removed_when_the_network_fails() -> None:
    model = Transformer(dynamic_img_size=True)
    encoder = TimmEncoder(model)
    model.norm = nn.LayerNorm(5)
    with pytest.raises(RuntimeError):
        encoder.get_intermediate_layers(IMAGES, 2)
    assert not any(module._forward_hooks for module in model.modules())


def test_rasa_of_load_encoder_reaches_encoders_of_both_kinds(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    projector = PositionProjector(torch.randn(2, 2, 32))
    projector.save(tmp_path / "rasa.safetensors")
    foreign = TimmEncoder(Transformer(dynamic_img_size=True).eval())
    monkeypatch.setattr("franca_fast.evaluation.encoders.load_timm_encoder", lambda *given: foreign)
    for rasa in (projector, tmp_path / "rasa.safetensors"):
        clean = load_encoder("timm:any", rasa=rasa)
        with torch.no_grad():
            raw = foreign.forward_features(IMAGES)["x_norm_patchtokens"]
            given = clean.forward_features(IMAGES)["x_norm_patchtokens"]
        assert torch.equal(given, projector.apply(raw)) and not torch.equal(given, raw)
    with pytest.raises(InputError, match="a projector for width 8; accepted: the model's, 32"):
        load_encoder("timm:any", rasa=PositionProjector(torch.randn(1, 2, 8)))
    narrow = PositionProjector(torch.randn(2, 2, 384))
    assert isinstance(load_encoder("vit_small", "random", rasa=narrow), VisionTransformer)
