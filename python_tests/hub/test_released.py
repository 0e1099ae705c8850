from __future__ import annotations

import pytest

from franca_fast.errors import InputError
from franca_fast.hub import list_models
from franca_fast.hub.released import RELEASED_MODELS, find_released
from franca_fast.models import ARCHITECTURES

FRANCA = "https://github.com/valeoai/Franca/releases/download"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"


@pytest.mark.parametrize(
    ("name", "weights", "address"),
    [
        ("franca_vitb14", "IN21K_518", f"{FRANCA}/v1.1.0/franca_vitb14_In21K_518.pth"),
        ("franca_vitb14", "IN21K_224", f"{FRANCA}/v1.1.0/franca_vitb14_In21K_224.pth"),
        ("franca_vitl14", "LAION_224", f"{FRANCA}/v1.1.0/franca_vitl14_Laion600M_224.pth"),
        ("franca_vitb14", None, f"{FRANCA}/v1.0.0/franca_vitb14_In21K.pth"),
        ("franca_vitl14", None, f"{FRANCA}/v1.0.0/franca_vitl14_Laion600M.pth"),
        ("franca_vitg14", None, f"{FRANCA}/v1.0.0/franca_vitg14_Laion600M_chunked.tar.gz"),
        ("dinov2_vits14", None, f"{DINOV2}/dinov2_vits14/dinov2_vits14_pretrain.pth"),
        ("dinov2_vitg14_reg", None, f"{DINOV2}/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
    ],
)
def test_addresses(name: str, weights: str | None, address: str) -> None:
    assert find_released(name, weights).address == address


def test_files_for_224_pixels_have_no_rasa() -> None:
    models = [
        find_released("franca_vitb14", "IN21K_224"),
        find_released("franca_vitl14", "LAION_224"),
    ]
    assert [(m.img_size, m.rasa, m.architecture) for m in models] == [
        (224, False, "vit_base"),
        (224, False, "vit_large"),
    ]


def test_what_was_withdrawn_is_marked() -> None:
    assert [m.weights for m in list_models() if m.withdrawn] == ["IN21K_518"]


def test_files_of_a_chunked_release() -> None:
    giant = find_released("franca_vitg14")
    assert [file[-7:] for file in giant.files] == ["part_aa", "part_ab", "part_ac"]
    assert giant.cached_file == "franca_vitg14_Laion600M.pth"
    assert giant.rasa_file == "franca_vitg14_Laion600M_rasa.pth"


def test_unknown_names_are_corrected() -> None:
    with pytest.raises(InputError, match="did you mean 'dinov2_vitb14_reg'"):
        find_released("dinov2_vitb14_regs")
    with pytest.raises(InputError, match="did you mean 'IN21K_518'"):
        find_released("franca_vitb14", "IN21K518")


def test_list_of_models() -> None:
    models = list_models()
    assert len(RELEASED_MODELS) == 11 + 8
    assert all(m.architecture in ARCHITECTURES for m in models)
    assert {m.name for m in models if not m.weights} == set(ARCHITECTURES)
    assert len({m.cached_file for m in RELEASED_MODELS}) == len(RELEASED_MODELS)
    licences = {m.name.split("_")[0]: m.licence for m in RELEASED_MODELS}
    assert licences == {"franca": "research only (RAIL)", "dinov2": "Apache-2.0"}
