from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings, check_output

SUFFIXES = [".npz", ".parquet", ".safetensors"]
NAMES = ["a/1.png", "a/2, two.png", "b/ü\n3.png"]


def example(labelled: bool = True) -> Embeddings:
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return Embeddings(
        NAMES, features, torch.tensor([0, 0, 1]) if labelled else None, {"damaged": 2}
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labelled", [True, False])
def test_round_trip(tmp_path: Path, suffix: str, labelled: bool) -> None:
    saved = example(labelled)
    saved.save(tmp_path / f"e{suffix}")
    loaded = Embeddings.load(tmp_path / f"e{suffix}")
    assert loaded.names == NAMES
    assert torch.equal(loaded.features, saved.features)
    assert loaded.features.dtype == torch.float32
    assert (loaded.labels is None) == (not labelled)
    if labelled:
        assert loaded.labels.tolist() == [0, 0, 1]
    assert [p.name for p in tmp_path.iterdir()] == [f"e{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_images(tmp_path: Path, suffix: str) -> None:
    Embeddings([], torch.zeros(0, 5)).save(tmp_path / f"e{suffix}")
    assert Embeddings.load(tmp_path / f"e{suffix}").features.shape == (0, 5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_file_is_kept_unless_asked(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"e{suffix}"
    file.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        example().save(file)
    assert file.read_text() == "precious"
    example().save(file, overwrite=True)
    assert Embeddings.load(file).names == NAMES


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"no embeddings"])
def test_damaged_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"e{suffix}").write_bytes(content)
    with pytest.raises(InputError, match="damaged, or no embeddings"):
        Embeddings.load(tmp_path / f"e{suffix}")


def test_unknown_suffix_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a suffix of \.npz, \.parquet, \.safetensors"):
        check_output(tmp_path / "e.csv")
    with pytest.raises(InputError, match="no such file"):
        Embeddings.load(tmp_path / "e.npz")


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        check_output(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("features", "labels"),
    [(torch.zeros(2, 5), None), (torch.zeros(3), None), (torch.zeros(3, 5), torch.zeros(2))],
)
def test_lengths_must_agree(features: torch.Tensor, labels: torch.Tensor | None) -> None:
    with pytest.raises(InputError, match="accepted"):
        Embeddings(NAMES, features, labels)


@pytest.mark.parametrize("folder", [b"caf\xe9", b"\x93\xfa\x96{", b"\xd6\xd0"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_path_that_is_not_utf_8_is_written_and_read(
    tmp_path: Path, suffix: str, folder: bytes
) -> None:
    file = tmp_path / os.fsdecode(folder) / os.fsdecode(b"\xff" + suffix.encode())
    file.parent.mkdir()
    example().save(file)
    loaded = Embeddings.load(file)
    assert loaded.names == NAMES and torch.equal(loaded.features, example().features)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_not_utf_8_and_facts_come_back(tmp_path: Path, suffix: str) -> None:
    names = ["caf\udce9.png", "caf\u00e9.png", "\\xe9.png"]
    facts = {"images": {"found": 5, "used": 3}, "levels": "minmax"}
    saved = Embeddings(
        names, torch.eye(3), torch.tensor([1, -1, 0]), {"x": 2}, ["a", "\udcff"], facts
    )
    saved.save(tmp_path / f"e{suffix}")
    loaded = Embeddings.load(tmp_path / f"e{suffix}")
    assert loaded.names == names and loaded.class_names == ["a", "\udcff"]
    assert loaded.skipped == {"x": 2} and loaded.facts == facts
    assert loaded.labels is not None and loaded.labels.tolist() == [1, -1, 0]


def test_parquet_shows_the_names_of_classes_to_other_programs(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    labels = torch.tensor([1, -1, 0])
    Embeddings(NAMES, torch.eye(3), labels, class_names=["cat", "dog"]).save(tmp_path / "e.parquet")
    table = parquet.read_table(tmp_path / "e.parquet")
    assert table.column("class").to_pylist() == ["dog", None, "cat"]


def test_labels_beyond_the_names_are_refused() -> None:
    with pytest.raises(InputError, match="labels: 2; accepted: below 2"):
        Embeddings(["a"], torch.ones(1, 2), torch.tensor([2]), class_names=["x", "y"])
