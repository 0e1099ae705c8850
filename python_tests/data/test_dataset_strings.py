from __future__ import annotations

import pytest

from franca_fast.data.dataset_strings import check_choice, expanded, split_dataset_string
from franca_fast.errors import InputError

KNOWN = {"Photos": ("root", "split"), "Bundled": ("split",)}


def test_values_may_contain_colons() -> None:
    assert split_dataset_string("Photos:split=A:root=s3://a:b", KNOWN) == (
        "Photos",
        {"split": "A", "root": "s3://a:b"},
    )


@pytest.mark.parametrize("text", ["folder", "C:\\photos", "a/Photos:root=b", "Photo"])
def test_paths_name_no_data_set(text: str) -> None:
    assert split_dataset_string(text, KNOWN) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Photo:root=a", r"dataset: Photo \(did you mean 'Photos'\?\); accepted: Photos, Bundled"),
        ("Photos:rot=a", r"option of Photos: rot \(did you mean 'root'\?\); accepted: root, split"),
        ("Photos:root", "option of Photos: root"),
        ("Photos:split=a", "needs root=PATH; accepted: Photos:root=PATH"),
        ("Bundled:split=a:split=b", "each option once"),
    ],
)
def test_what_is_refused(text: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        split_dataset_string(text, KNOWN)


def test_choices() -> None:
    check_choice("split", "val", ("train", "val"))
    with pytest.raises(InputError, match=r"split: vall \(did you mean 'val'\?\); accepted: train"):
        check_choice("split", "vall", ("train", "val"))


def test_variables_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data")
    assert expanded("$PLACE/voc") == "/data/voc"
