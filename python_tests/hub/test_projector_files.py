from __future__ import annotations

import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from franca_fast.errors import InputError
from franca_fast.rasa import PositionProjector


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def projector() -> PositionProjector:
    return PositionProjector(torch.randn(3, 2, 16), facts={"chance": 0.25})


@pytest.mark.parametrize("compatible", [False, True])
def test_own_file_keeps_everything(projector, tmp_path, compatible):
    before = PositionProjector(projector.weights, compatible=compatible, facts=projector.facts)
    before.save(tmp_path / "rasa.safetensors")
    after = PositionProjector.from_files(tmp_path / "rasa.safetensors")
    assert torch.equal(after.weights, before.weights)
    assert torch.equal(after.matrix(), before.matrix())
    assert (after.compatible, after.facts) == (compatible, {"chance": 0.25})


def test_matrix_in_the_file_is_the_whole_map(tmp_path):
    projector = PositionProjector(torch.randn(3, 2, 16), compatible=True)
    projector.save(tmp_path / "rasa.safetensors")
    matrix, tokens = load_file(tmp_path / "rasa.safetensors")["matrix"], torch.randn(5, 16)
    torch.testing.assert_close(tokens @ matrix.T, projector.apply(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("compatible", [False, True])
def test_released_form_gives_the_same_when_read_as_the_released_code_does(tmp_path, compatible):
    before = PositionProjector(torch.randn(3, 2, 16), compatible=compatible)
    before.save(tmp_path / "rasa.pth")
    assert sorted(torch.load(tmp_path / "rasa.pth", weights_only=True)) == [
        "pos_pred.weight",
        "pre_pos_layers.0.weight",
        "pre_pos_layers.1.weight",
    ]
    after = PositionProjector.from_files(tmp_path / "rasa.pth", compatible=True)
    torch.testing.assert_close(after.matrix(), before.matrix(), rtol=0, atol=1e-6)


def test_released_file_survives_a_round_trip(golden_folder, tmp_path):
    released = golden_folder / "rasa.pth"
    PositionProjector.from_files(released, compatible=True).save(tmp_path / "again.pth")
    first, second = (torch.load(f, weights_only=True) for f in (released, tmp_path / "again.pth"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_layers_are_taken_by_number(tmp_path):
    layers = torch.randn(12, 2, 32)
    state = {f"pre_pos_layers.{i}.weight": layers[i] for i in range(11)}
    torch.save({"pos_pred.weight": layers[11], **dict(sorted(state.items()))}, tmp_path / "r.pth")
    assert torch.equal(PositionProjector.from_files(tmp_path / "r.pth").weights, layers)


def test_head_beside_a_backbone_is_found(tmp_path):
    state = {
        "module.backbone.cls_token": torch.zeros(1, 1, 8),
        "module.rasa_head.pre_pos_layers.0.weight": torch.ones(2, 8),
        "module.rasa_head.pos_pred.weight": torch.randn(2, 8),
    }
    torch.save({"teacher": state}, tmp_path / "all.pth")
    weights = PositionProjector.from_files(tmp_path / "all.pth").weights
    assert torch.equal(weights[0], torch.ones(2, 8))
    assert len(weights) == 2


def test_several_files_follow_one_another(projector, golden_folder, tmp_path):
    projector.save(tmp_path / "a.safetensors")
    PositionProjector(torch.randn(1, 2, 16)).save(tmp_path / "b.safetensors")
    both = PositionProjector.from_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert both.rank == 8
    assert torch.equal(both.weights[:3], projector.weights)
    with pytest.raises(InputError, match=r"\[16, 64\]"):
        PositionProjector.from_files(tmp_path / "a.safetensors", golden_folder / "rasa.pth")
    with pytest.raises(InputError, match="no file"):
        PositionProjector.from_files()


def test_files_of_both_kinds_need_a_decision(projector, tmp_path):
    projector.save(tmp_path / "a.safetensors")
    PositionProjector(projector.weights, compatible=True).save(tmp_path / "b.safetensors")
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="both kinds"):
        PositionProjector.from_files(*files)
    assert PositionProjector.from_files(*files, compatible=True).compatible


def test_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    victim = tmp_path / "written"
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"pos_pred.weight": Malicious(victim)}))
    torch.save({"pos_pred.weight": Malicious(victim)}, tmp_path / "bad2.pth")
    for name in ("bad.pth", "bad2.pth"):
        with pytest.raises(InputError, match="rasa"):
            PositionProjector.from_files(tmp_path / name)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"pre_pos_layers.0.weight": torch.ones(2, 8)}, "pos_pred.weight"),
        ({"pos_pred.weight": torch.ones(2, 8), "extra": torch.ones(1)}, "extra"),
        (
            {"pos_pred.weight": torch.ones(2, 8), "pre_pos_layers.1.weight": torch.ones(2, 8)},
            "pre_pos_layers.0",
        ),
        (
            {"pos_pred.weight": torch.ones(2, 8), "pre_pos_layers.0.weight": torch.ones(2, 9)},
            "one shape",
        ),
        ({"pos_pred.weight": torch.ones(1, 8)}, "one shape"),
        ({"pos_pred.weight": torch.full((2, 8), float("nan"))}, "finite"),
        ({"pos_pred.weight": "text"}, "not tensors"),
    ],
)
def test_wrong_released_files_are_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=message):
        PositionProjector.from_files(tmp_path / "wrong.pth")


def test_backbone_in_place_of_a_projector_is_refused(golden_folder):
    with pytest.raises(InputError, match="pos_pred"):
        PositionProjector.from_files(golden_folder / "teacher_checkpoint.pth")


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"rasa '.*no such file"):
        PositionProjector.from_files(tmp_path / "none.pth")
    (tmp_path / "rasa.txt").write_text("no")
    with pytest.raises(InputError, match="unknown kind"):
        PositionProjector.from_files(tmp_path / "rasa.txt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_cut_of_a_file_is_refused(projector, tmp_path, suffix):
    projector.save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in range(0, len(data), max(1, len(data) // 20)):
        cut.write_bytes(data[:length])
        with pytest.raises(InputError):
            PositionProjector.from_files(cut)


def test_safetensors_of_something_else_is_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"weights": torch.ones(1, 2, 8)}, file)
    with pytest.raises(InputError, match="metadata"):
        PositionProjector.from_files(file)
    content = '{"compatible": false, "facts": {}}'
    save_file({"weights": torch.ones(1, 2, 8)}, file, {"format": "x/9", "rasa": content})
    with pytest.raises(InputError, match="'x/9'"):
        PositionProjector.from_files(file)
    save_file({"weights": torch.ones(1, 3, 8)}, file, {"format": "x/9", "rasa": content})
    with pytest.raises(InputError, match="x/9"):
        PositionProjector.from_files(file)


def test_existing_file_stays_unless_asked(projector, tmp_path):
    file = tmp_path / "rasa.safetensors"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        projector.save(file)
    assert file.read_text() == "mine"
    projector.save(file, overwrite=True)
    assert PositionProjector.from_files(file).rank == 6


def test_unknown_suffix_is_refused(projector, tmp_path):
    with pytest.raises(InputError, match=r"\.safetensors"):
        projector.save(tmp_path / "rasa.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_full_disk_leaves_nothing(tmp_path, suffix):
    projector = PositionProjector(torch.randn(8, 2, 512))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError):
            projector.save(tmp_path / f"rasa{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
