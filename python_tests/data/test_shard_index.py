from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from franca_fast.data.accounting import BadSample
from franca_fast.data.shard_index import ShardIndex
from franca_fast.data.shards import TarShard
from python_tests.data.files import tar_bytes

COMPRESSIONS = ["w", "w:gz"]


def index_of(tmp_path: Path, members: dict[str, bytes], mode: str = "w") -> ShardIndex:
    data = tar_bytes(members.items())
    if mode == "w:gz":
        import gzip

        data = gzip.compress(data)
    (tmp_path / "s.tar").write_bytes(data)
    return TarShard(str(tmp_path / "s.tar")).index()


@pytest.mark.parametrize("mode", COMPRESSIONS)
@pytest.mark.parametrize(
    "files",
    [
        {"a.json": b'{"caption": "x"}', "a.cls": b"7"},
        {"a.cls": b"7", "a.json": b'{"label": 3}'},
        {"a.json": b'{"label": 7}', "a.cls": b"[damaged"},
        {"a.cls": b"-1", "a.json": b'{"label": 7}'},
    ],
)
def test_a_label_is_taken_from_the_file_that_has_one(
    tmp_path: Path, files: dict[str, bytes], mode: str
) -> None:
    remarks = list[BadSample]()
    index = index_of(tmp_path, {"a.png": b"", **files, "b.png": b"", "b.cls": b"4"}, mode)
    assert [index.label(i, remarks) for i in range(2)] == [7, 4]
    assert remarks == []


@pytest.mark.parametrize("mode", COMPRESSIONS)
@pytest.mark.parametrize("label", [b"[1, 2]", b"", b"two\nlines", b"x" * (1 << 20) + b"x"])
def test_a_label_that_is_not_understood_is_named(tmp_path: Path, label: bytes, mode: str) -> None:
    remarks = list[BadSample]()
    index = index_of(tmp_path, {"a.png": b"", "a.cls": label}, mode)
    assert index.label(0, remarks) is None
    assert [(remark.location, remark.reason) for remark in remarks] == [
        (f"{tmp_path}/s.tar:a.png", "label that is not understood")
    ]


def test_numbers_take_the_names_that_hold_at_their_place() -> None:
    places = np.array([[0, 1], [10, 1], [20, 1]])
    labels = np.array([[5, 1], [15, 1], [25, 1]])
    data = [[b"1"], [b"1"], [b"2"]]
    lists = [(8, ["a", "b"]), (18, ["c", "d"])]
    index = ShardIndex(
        ["x", "y", "z"],
        "s.tar",
        places=places,
        label_places=labels,
        label_data=data,
        classes=lists,
    )
    assert [index.label(i) for i in range(3)] == [1, "b", 2]
