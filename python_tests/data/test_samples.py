from __future__ import annotations

import os
from pathlib import Path

import pytest

from franca_fast.data.decoding import BadImage
from franca_fast.data.samples import BadLabel, OpenFiles, SampleRef, parse_label, read_sample


def test_a_huge_member_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="file too large"):
        read_sample(SampleRef("a.jpg", str(tmp_path / "s.tar"), 0, 1 << 40))


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(bytes(100))
    with pytest.raises(BadImage, match="ends early"):
        read_sample(SampleRef("a.jpg", str(tmp_path / "s.tar"), 50, 100))


def test_few_files_stay_open(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(5)]
    for path in paths:
        path.write_text(path.name)
    files = OpenFiles(2)
    for path in paths * 2:
        assert read_sample(SampleRef("", str(path), 0, 1), files) == path.name.encode()
    assert len(files._files) == 2
    files.close()


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (b"7", 7),
        (b" 7\r\n", 7),
        (b"\xef\xbb\xbf7", 7),
        (b"3.0", 3),
        (b'"7"', 7),
        (b'{"label": 3}', 3),
        (b'{"label": "3"}', 3),
        (b'{"caption": "a cat", "class": 4}', 4),
        (b'{"cls": 5, "x": [1]}', 5),
        (b'{"label": 2.0}', 2),
        (b"cat", "cat"),
        (b'"cat"', "cat"),
        (b'{"label": "cat"}', "cat"),
        (b"great white shark\n", "great white shark"),
        (b"caf\xe9", "caf\udce9"),
        ("猫".encode(), "猫"),
        ("cat".encode("utf-16"), "cat"),
        (b"true", "true"),
        (b'{"caption": "a cat"}', None),
        (b'{"label": null}', None),
        (b"null", None),
        (b'{"label": null, "class": 3}', 3),
        (b'{"cls": null, "class": "cat"}', "cat"),
        (b'{"label": null, "cls": 0, "class": 3}', 0),
        (b"-1", None),
        (b'{"label": -1}', None),
    ],
)
def test_labels(data: bytes, label: int | str | None) -> None:
    assert parse_label(data) == label


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"a\nb",
        b"-5",
        b"1.5",
        b"99999999999",
        b"[1, 2]",
        b'{"label": [1]}',
        b'{"label": true}',
        b'{"label": ""}',
        b"{damaged",
        b"[" * 100_000,
        b"x" * 256,
        b"\xff\xfe",
        bytes(range(1, 20)),
    ],
)
def test_what_is_no_label_is_refused_and_shown(data: bytes) -> None:
    with pytest.raises(BadLabel, match=r"^['\"]"):
        parse_label(data)


@pytest.mark.parametrize("name", ["pipe", "folder", "zero"])
def test_only_regular_files_are_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadImage, match="unreadable file"):
        read_sample(SampleRef(name, str(tmp_path / name)))
    assert len(os.listdir("/proc/self/fd")) == before
