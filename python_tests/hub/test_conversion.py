from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.hub import (
    convert,
    export_huggingface,
    export_safetensors,
    load_head,
    load_model,
)
from franca_fast.models import NestedPrototypeHead, VisionTransformer, build_backbone
from python_tests.hub.test_huggingface import build, without_positions

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "teacher_checkpoint.pth"
HEADS = {"num_heads": 4}


def same(first: nn.Module, second: nn.Module) -> bool:
    state, other = first.state_dict(), second.state_dict()
    return state.keys() == other.keys() and all(torch.equal(t, other[k]) for k, t in state.items())


def test_released_file_to_ours_and_back(tmp_path: Path) -> None:
    original = load_model(CHECKPOINT, architecture=HEADS)
    ours = convert(CHECKPOINT, tmp_path / "a.safetensors", architecture=HEADS)
    assert (ours.heads, ours.not_stored) == ((), {})
    assert same(load_model(ours.path), original)
    back = convert(ours.path, tmp_path / "b.pth")
    assert back.not_stored == HEADS
    assert same(load_model(back.path, architecture=back.not_stored), original)
    content = torch.load(back.path, weights_only=True)
    assert list(content) == ["teacher"]
    assert all(key.startswith("backbone.") for key in content["teacher"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors", "b.pth"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_heads_are_kept_when_asked(tmp_path: Path, suffix: str) -> None:
    written = convert(CHECKPOINT, tmp_path / f"a{suffix}", keep_heads=True, architecture=HEADS)
    assert written.heads == ("dino_head",)
    assert same(load_head(written.path), load_head(CHECKPOINT))
    assert same(
        load_model(written.path, architecture=HEADS), load_model(CHECKPOINT, architecture=HEADS)
    )


def test_interpolation_that_a_pth_does_not_tell(tmp_path: Path) -> None:
    folder = export_huggingface(build(img_size=28, interpolate_offset=0.0), tmp_path / "hf")
    written = convert(folder, tmp_path / "a.pth")
    assert written.not_stored == {"num_heads": 4, "interpolate_offset": 0.0}
    again = load_model(written.path, architecture=written.not_stored)
    assert same(again, load_model(folder))


def test_export_as_safetensors_is_what_load_model_reads(tmp_path: Path) -> None:
    model = build(img_size=28)
    path = export_safetensors(model, tmp_path / "a.safetensors")
    assert same(load_model(path), model)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.json' exists"):
        export_safetensors(model, path)
    export_safetensors(model, path, overwrite=True)


@pytest.mark.parametrize(
    ("source", "name", "options", "complaint"),
    [
        (CHECKPOINT, "a.npz", {}, r"ends in \.safetensors or \.pth"),
        (CHECKPOINT, "there.pth", {}, "exists"),
        (CHECKPOINT, "new.safetensors", {}, "exists"),
        (CHECKPOINT, "a.pth", {"architecture": None}, "num_heads"),
        (GOLDEN / "rasa.pth", "a.pth", {}, "no vision transformer"),
        ("nothing.pth", "a.pth", {}, "no such file"),
    ],
)
def test_what_is_refused_writes_nothing(
    tmp_path: Path, source: object, name: str, options: dict, complaint: str
) -> None:
    (tmp_path / "there.pth").touch()
    (tmp_path / "new.json").touch()
    with pytest.raises(InputError, match=complaint):
        convert(source, tmp_path / name, **{"architecture": HEADS} | options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.json", "there.pth"]


def test_no_heads_to_keep_and_removed_positions_are_said(tmp_path: Path) -> None:
    plain = export_safetensors(build(img_size=28), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no heads to keep"):
        convert(plain, tmp_path / "b.safetensors", keep_heads=True)
    removing = export_safetensors(without_positions(img_size=28), tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="no place for a removal of positions"):
        convert(removing, tmp_path / "b.pth")
    assert not list(tmp_path.glob("b.*"))


def test_heads_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    state = torch.load(CHECKPOINT, weights_only=True)
    heads = state.get("teacher", state)
    name = next(name for name in heads if "dino_head.mlps.0.0.bias" in name)
    heads[name][0] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"dino_head\.mlps\.0\.0\.bias \(1 of"):
        convert(tmp_path / "w.pth", tmp_path / "a.pth", keep_heads=True, architecture=HEADS)
    assert not (tmp_path / "a.pth").exists()


# A file as large as the released ones, in every spelling.


@pytest.fixture(scope="module")
def vit_base() -> VisionTransformer:
    """ViT-B/14 for 518 pixels; each tensor holds one number of its own, which float16 keeps."""
    with torch.device("meta"):
        model = build_backbone("vit_base", img_size=518)
    state = {
        key: torch.full(tensor.shape, float(i % 512))
        for i, (key, tensor) in enumerate(model.state_dict().items())
    }
    model.load_state_dict(state, assign=True)
    return model


def released(model: VisionTransformer, prefix: str, chunked: bool) -> dict[str, Tensor]:
    """The state dict of a released file: chunks of three blocks, a head beside the backbone."""
    state = {}
    for key, tensor in model.state_dict().items():
        if chunked and key.startswith("blocks."):
            key = key.replace("blocks.", f"blocks.{int(key.split('.')[1]) // 3}.", 1)
        state[prefix + key] = tensor.half()
    if prefix:
        head = NestedPrototypeHead(768, 64, hidden_dim=16, bottleneck_dim=8)
        root = prefix.replace("backbone.", "")
        state |= {f"{root}dino_head.{key}": t for key, t in head.state_dict().items()}
    return state


@pytest.mark.parametrize(
    ("prefix", "chunked"), [("", False), ("backbone.", True), ("module.backbone.", True)]
)
def test_file_of_vit_base(
    tmp_path: Path, vit_base: VisionTransformer, prefix: str, chunked: bool
) -> None:
    file = tmp_path / "w.pth"
    torch.save({"teacher": released(vit_base, prefix, chunked)}, file)
    loaded = load_model("franca_vitb14", weights=file)
    file.unlink()
    assert same(loaded, vit_base)
    assert loaded.config == vit_base.config


def test_chunked_archive_of_vit_base(tmp_path: Path, vit_base: VisionTransformer) -> None:
    content = io.BytesIO()
    torch.save({"teacher": released(vit_base, "module.backbone.", True)}, content)
    archive = tmp_path / "w_chunked.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("w.pth")
        member.size = content.tell()
        content.seek(0)
        tar.addfile(member, content)
    data = archive.read_bytes()
    archive.unlink()
    for i, letter in enumerate("abc"):
        part = data[i * len(data) // 3 : (i + 1) * len(data) // 3]
        (tmp_path / f"{archive.name}.part_a{letter}").write_bytes(part)
    loaded = load_model("franca_vitb14", weights=archive)
    assert same(loaded, vit_base)
