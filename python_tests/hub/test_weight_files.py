from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from franca_fast.errors import InputError
from franca_fast.hub import normalize_backbone_keys, read_state_dict
from franca_fast.hub.weight_files import load_strict


class RunsACommand:
    """A pickle that would create a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "teacher.", "module.backbone."])
def test_prefixes_are_removed(prefix: str) -> None:
    state = normalize_backbone_keys({f"{prefix}cls_token": torch.zeros(1)})
    assert list(state) == ["cls_token"]


def test_prefix_inside_a_name_stays() -> None:
    state = normalize_backbone_keys({"blocks.0.backbone.weight": torch.zeros(1)})
    assert list(state) == ["blocks.0.backbone.weight"]


def test_chunked_blocks_keep_their_global_index() -> None:
    state = normalize_backbone_keys({"blocks.3.11.mlp.w3.bias": torch.zeros(1)})
    assert list(state) == ["blocks.11.mlp.w3.bias"]


def test_plain_blocks_are_left_as_they_are() -> None:
    state = normalize_backbone_keys({"blocks.3.mlp.w3.bias": torch.zeros(1)})
    assert list(state) == ["blocks.3.mlp.w3.bias"]


def test_heads_are_left_out_and_unknown_keys_stay() -> None:
    keys = ["module.dino_head.mlps.0.0.bias", "ibot_head.x", "teacher.rasa_head.y", "surprise"]
    assert list(normalize_backbone_keys(dict.fromkeys(keys, torch.zeros(1)))) == ["surprise"]


def test_two_spellings_of_one_key_are_refused() -> None:
    state = {"backbone.norm.bias": torch.zeros(1), "module.norm.bias": torch.ones(1)}
    with pytest.raises(InputError, match=r"backbone\.norm\.bias.*module\.norm\.bias"):
        normalize_backbone_keys(state)


@pytest.mark.parametrize("wrapper", [None, "teacher", "model", "state_dict"])
def test_pth_flat_or_wrapped(tmp_path: Path, wrapper: str | None) -> None:
    content = {"a": torch.arange(3.0)}
    torch.save(content if wrapper is None else {wrapper: content, "step": 3}, tmp_path / "w.pth")
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], torch.arange(3.0))


def test_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["a"], torch.arange(3.0))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_file_is_refused_and_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    content = {"teacher": {"a": torch.zeros(1)}, "more": RunsACommand(tmp_path / "ran")}
    file = tmp_path / "w.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"refused, .*posix\.system.*nothing in it was run"):
        read_state_dict(file)
    assert not (tmp_path / "ran").exists()


def test_bare_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(pickle.dumps(RunsACommand(tmp_path / "ran")))
    with pytest.raises(InputError, match="damaged, or not a file of PyTorch tensors"):
        read_state_dict(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_state_dict(file)


def test_truncated_pth_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged"):
        read_state_dict(file)


@pytest.mark.parametrize("content", [{"a": 1}, {}, [1, 2], {"teacher": {"a": "text"}}])
def test_anything_but_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="tensors"):
        read_state_dict(tmp_path / "w.pth")


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_state_dict(tmp_path / "w.pth")
    (tmp_path / "w.txt").touch()
    with pytest.raises(InputError, match=r"accepted: \.safetensors"):
        read_state_dict(tmp_path / "w.txt")


def test_strict_load_names_every_kind_of_mismatch() -> None:
    state = {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    with pytest.raises(InputError) as raised:
        load_strict(nn.Linear(2, 4), state, "w.pth")
    message = str(raised.value)
    assert "1 missing keys: bias" in message
    assert "1 unexpected keys: extra" in message
    assert "weight is [3, 2] instead of [4, 2]" in message


def test_strict_load_shortens_long_lists() -> None:
    state = {f"extra{i}": torch.zeros(1) for i in range(100)}
    with pytest.raises(InputError, match="extra3 and 96 more") as raised:
        load_strict(nn.Identity(), state, "w.pth")
    assert len(str(raised.value)) < 200


def test_failed_strict_load_changes_nothing() -> None:
    layer = nn.Linear(2, 4)
    before = layer.weight.clone()
    with pytest.raises(InputError):
        load_strict(layer, {"weight": torch.zeros(4, 2)}, "w.pth")
    assert torch.equal(layer.weight, before)


def test_strict_load_gives_float32() -> None:
    layer = nn.Linear(2, 4)
    load_strict(layer, {k: t.detach().half() for k, t in layer.state_dict().items()}, "w.pth")
    assert layer.weight.dtype == torch.float32
