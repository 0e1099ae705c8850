from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from franca_fast.errors import InputError
from franca_fast.hub import normalize_backbone_keys, read_state_dict
from franca_fast.hub.weight_files import check_finite, load_strict


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


@pytest.mark.parametrize("seed", range(20))
def test_values_that_are_not_finite_are_named_and_counted(seed: int) -> None:
    draw = random.Random(seed)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    state = {f"key{i}": torch.ones(draw.randrange(40), 3).to(draw.choice(kinds)) for i in range(9)}
    check_finite(state, "w.pth")
    floats = [k for k, t in state.items() if t.is_floating_point() and t.numel()]
    if not floats:
        return
    wrong = state[key := draw.choice(floats)].flatten()
    count = draw.randrange(1, wrong.numel() + 1)
    for place in draw.sample(range(wrong.numel()), count):
        wrong[place] = draw.choice([float("nan"), float("inf"), float("-inf")])
    message = rf"'w.pth': .* in 1 tensors: {key} \({count} of {wrong.numel()}\); accepted: finite"
    with pytest.raises(InputError, match=message):
        check_finite(state, "w.pth")


def test_strict_load_refuses_values_that_float32_cannot_hold() -> None:
    state = {key: t.detach().double() for key, t in nn.Linear(2, 4).state_dict().items()}
    state["bias"][1] = 1e300
    with pytest.raises(InputError, match=r"bias \(1 of 4\)"):
        load_strict(nn.Linear(2, 4), state, "w.pth")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.symlink_to("nothing"), "a link to what is missing"),
        (os.mkfifo, "a pipe, no file"),
        (Path.mkdir, "a folder"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".tar.gz"])
def test_what_cannot_be_read_is_not_called_missing(
    tmp_path: Path, make: Callable[[Path], object], reason: str, suffix: str
) -> None:
    make(tmp_path / f"w{suffix}")
    with pytest.raises(InputError, match=reason):
        read_state_dict(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".tar.gz"])
def test_a_name_that_is_too_long_is_said(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="file name too long"):
        read_state_dict(tmp_path / f"{'w' * 300}{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", [b"caf\xe9", b"\xb2\xe2\xca\xd4", b"\x83e\x83X"])
def test_names_need_not_be_utf_8(tmp_path: Path, name: bytes, suffix: str) -> None:
    file = tmp_path / f"{os.fsdecode(name)}{suffix}"
    state = {"a": torch.arange(3.0)}
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    assert torch.equal(read_state_dict(file)["a"], torch.arange(3.0))
