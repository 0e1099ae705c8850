from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.hub import load_head, load_model, read_state_dict, save_backbone
from franca_fast.models import ARCHITECTURES, VisionTransformer
from franca_fast.rasa import PositionProjector

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "teacher_checkpoint.pth"


@pytest.fixture(scope="module")
def backbone() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=28, embed_dim=32, depth=2, num_heads=2).eval()


def state_of(
    model: VisionTransformer, prefix: str = "", chunk: int | None = None
) -> dict[str, Tensor]:
    state = {}
    for key, tensor in model.state_dict().items():
        if chunk and key.startswith("blocks."):
            index = int(key.split(".")[1])
            key = key.replace("blocks.", f"blocks.{index // chunk}.", 1)
        state[prefix + key] = tensor
    return state


def assert_same_weights(model: VisionTransformer, other: VisionTransformer) -> None:
    assert model.state_dict().keys() == other.state_dict().keys()
    for key, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "teacher.backbone."])
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_spelling_loads(
    tmp_path: Path, backbone: VisionTransformer, prefix: str, chunk: int | None, wrapped: bool
) -> None:
    state = state_of(backbone, prefix, chunk)
    torch.save({"teacher": state} if wrapped else state, tmp_path / "w.pth")
    model = load_model(tmp_path / "w.pth", architecture={"num_heads": 2})
    assert_same_weights(model, backbone)
    assert not model.training


@pytest.fixture(scope="module")
def tiny() -> VisionTransformer:
    return VisionTransformer(img_size=14, **ARCHITECTURES["vit_tiny"])


def test_named_architecture_with_weights(tmp_path: Path, tiny: VisionTransformer) -> None:
    torch.save({"teacher": state_of(tiny, "backbone.")}, tmp_path / "w.pth")
    assert_same_weights(load_model("vit_tiny", weights=tmp_path / "w.pth"), tiny)
    assert load_model(tmp_path / "w.pth").num_heads == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("blocks.1.ls2.gamma"), r"missing keys: blocks\.1\.ls2\.gamma"),
        (lambda s: s.update(surprise=torch.zeros(1)), "unexpected keys: surprise"),
        (lambda s: s.update(cls_token=torch.zeros(1, 1, 9)), r"cls_token is \[1, 1, 9\]"),
    ],
)
def test_loading_is_strict(tmp_path: Path, backbone: VisionTransformer, change, complaint) -> None:
    state = dict(backbone.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=complaint):
        load_model(tmp_path / "w.pth", architecture={"num_heads": 2})


def test_save_and_load(tmp_path: Path, backbone: VisionTransformer) -> None:
    weights = save_backbone(backbone, tmp_path / "exported" / "teacher")
    stem, architecture = weights.with_suffix(""), weights.with_suffix(".json")
    for path in (weights, stem, architecture, tmp_path / "exported", tmp_path):
        model = load_model(path)
        assert_same_weights(model, backbone)
        assert model.config == backbone.config
    assert sorted(p.name for p in weights.parent.iterdir()) == [
        "teacher.json",
        "teacher.safetensors",
    ]


def test_stem_with_a_dot(tmp_path: Path, backbone: VisionTransformer) -> None:
    save_backbone(backbone, tmp_path / "step.100")
    assert_same_weights(load_model(tmp_path / "step.100"), backbone)


def test_safetensors_without_json_is_refused(tmp_path: Path, backbone: VisionTransformer) -> None:
    save_backbone(backbone, tmp_path / "teacher").with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"teacher\.json': no such file"):
        load_model(tmp_path / "teacher.safetensors")


@pytest.mark.parametrize("text", ["not json", "[]", '{"architecture": {}}'])
def test_wrong_json_is_refused(tmp_path: Path, backbone: VisionTransformer, text: str) -> None:
    save_backbone(backbone, tmp_path / "teacher").with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match=r"teacher\.json"):
        load_model(tmp_path)


def test_unknown_argument_in_the_json_is_named(tmp_path: Path, backbone: VisionTransformer) -> None:
    file = save_backbone(backbone, tmp_path / "teacher").with_suffix(".json")
    content = json.loads(file.read_text())
    content["architecture"]["windows"] = 7
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="windows"):
        load_model(tmp_path)


def test_random_weights_are_asked_for_explicitly() -> None:
    model = load_model("vit_tiny", weights="random", img_size=28, architecture={"depth": 1})
    assert model.config["img_size"] == 28
    assert not model.training
    with pytest.raises(InputError, match="'random' for an untrained network"):
        load_model("vit_tiny")


@pytest.mark.parametrize(
    ("name", "weights", "complaint"),
    [
        ("vit_bose", None, "did you mean 'vit_base'"),
        ("franca_vitb41", None, "did you mean 'franca_vitb14'"),
        ("franca_vitb14", None, r"127\.0\.0\.1:1/franca_vitb14_In21K\.pth"),
        ("franca_vitl14", "LAION_518", r"127\.0\.0\.1:1/franca_vitl14_Laion_518\.pth"),
        ("dinov2_vits14_reg", None, r"dinov2_vits14_reg4_pretrain\.pth"),
        ("franca_vitb14", "IN21", r"no such file \(did you mean 'IN21K'"),
        ("missing.pth", None, "no such file or folder"),
        ("nowhere/run", None, "no such file or folder"),
        (str(CHECKPOINT), "random", "accepted: the name of an architecture"),
        (str(GOLDEN), None, "of another format; accepted: 'franca_fast.backbone/1'"),
        (str(GOLDEN / "rasa.pth"), None, "no vision transformer"),
    ],
)
def test_wrong_names_say_what_is_accepted(name: str, weights: str | None, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_model(name, weights=weights)


def test_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder with no exported models"):
        load_model(tmp_path)


def test_image_size_must_fit_the_patch(tmp_path: Path, backbone: VisionTransformer) -> None:
    save_backbone(backbone, tmp_path / "teacher")
    assert load_model(tmp_path, img_size=42).patch_size == 14
    with pytest.raises(InputError, match="the nearest are 28 and 42"):
        load_model(tmp_path, img_size=30)


def test_rasa_cleans_patch_tokens_only() -> None:
    architecture = {"num_heads": 4}
    image = torch.randn(1, 3, 98, 98)
    raw = load_model(CHECKPOINT, architecture=architecture).forward_features(image)
    for rasa in (GOLDEN / "rasa.pth", PositionProjector.from_files(GOLDEN / "rasa.pth")):
        model = load_model(CHECKPOINT, rasa=rasa, architecture=architecture)
        tokens = model.forward_features(image)
        assert torch.equal(tokens["x_norm_clstoken"], raw["x_norm_clstoken"])
        expected = PositionProjector.from_files(GOLDEN / "rasa.pth").apply(
            raw["x_norm_patchtokens"]
        )
        assert torch.equal(tokens["x_norm_patchtokens"], expected)


@pytest.mark.parametrize(("name", "message"), [("none.pth", "no such file"), ("r.pth", "width 8")])
def test_rasa_that_does_not_fit_is_refused(name: str, message: str, tmp_path: Path) -> None:
    torch.save({"pos_pred.weight": torch.randn(2, 8)}, tmp_path / "r.pth")
    with pytest.raises(InputError, match=f"rasa.*{message}"):
        load_model(CHECKPOINT, rasa=tmp_path / name, architecture={"num_heads": 4})


@pytest.mark.parametrize(
    ("file", "name", "projection", "in_features"),
    [("teacher_checkpoint", "dino_head", "full", 64), ("slice_head", "ibot_head", "slice", 4)],
)
def test_golden_heads_load(file: str, name: str, projection: str, in_features: int) -> None:
    head = load_head(GOLDEN / f"{file}.pth", name)
    assert head.projection == projection
    assert head.out_dims == (32, 64, 128, 256, 512)
    assert head.matryoshka_projections[0].in_features == in_features
    state = read_state_dict(GOLDEN / f"{file}.pth")
    assert torch.equal(head.last_layers[2].weight_v, state[f"{name}.last_layers.2.weight_v"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = read_state_dict(CHECKPOINT)
    for key in ("module.backbone.norm.bias", "dino_head.mlps.0.0.bias"):
        name = next(name for name in state if name.endswith(key.removeprefix("module.")))
        state[name].view(-1)[1] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"NaN or infinite .*norm\.bias \(1 of 64\)"):
        load_model(tmp_path / "w.pth", architecture={"num_heads": 4})
    with pytest.raises(InputError, match=r"NaN or infinite .*mlps\.0\.0\.bias \(1 of"):
        load_head(tmp_path / "w.pth")


def test_a_rasa_file_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    torch.save({"pos_pred.weight": torch.full((2, 64), float("nan"))}, tmp_path / "r.pth")
    with pytest.raises(InputError, match=r"rasa .*pos_pred\.weight \(128 of 128\)"):
        load_model(CHECKPOINT, rasa=tmp_path / "r.pth", architecture={"num_heads": 4})


def test_what_a_killed_export_leaves_is_no_model(tmp_path: Path, backbone) -> None:
    file = save_backbone(backbone, tmp_path / "teacher")
    (tmp_path / ".teacher-x1y2.safetensors").write_bytes(file.read_bytes()[:100])
    assert_same_weights(load_model(tmp_path), backbone)


def test_absent_or_unknown_head_is_named() -> None:
    with pytest.raises(InputError, match="no keys that start with ibot_head"):
        load_head(CHECKPOINT, "ibot_head")
    with pytest.raises(InputError, match="accepted: dino_head or ibot_head"):
        load_head(CHECKPOINT, "head")


def test_head_loading_is_strict(tmp_path: Path) -> None:
    state = read_state_dict(GOLDEN / "slice_head.pth")
    state["ibot_head.mlps.3.9.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"unexpected keys: mlps\.3\.9\.weight"):
        load_head(tmp_path / "w.pth", "ibot_head")
