from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from franca_fast.data.tar_index import Member, Read, TarDamage, tar_members, tar_samples
from python_tests.data.files import tar_bytes


def reader(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


def members_of(data: bytes) -> list[Member]:
    return list(tar_members(reader(data), len(data)))


def before_damage(found: Iterator[Any]) -> list[Any]:
    """What comes before `TarDamage`, if that comes at all."""
    items = []
    with suppress(TarDamage):
        for item in found:
            items.append(item)
    return items


def sample_names(data: bytes) -> list[tuple[str, str | None]]:
    samples = tar_samples(reader(data), len(data))
    return [(image.name, label.name if label else None) for image, label in samples]


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "folder/" * 12 + "a-name-of-a-file-that-is-rather-long.jpg"


@pytest.mark.parametrize("format", FORMATS)
def test_finds_what_tarfile_finds(format: int) -> None:
    given = [("a.jpg", b"x" * 700), ("b/c.jpg", b""), (LONG, b"y" * 512), ("z.cls", b"3")]
    data = tar_bytes(given, format=format)
    found = members_of(data)
    assert [(m.name, data[m.offset : m.offset + m.size]) for m in found] == given


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_length_and_script(format: int) -> None:
    names = ["p" * 300 + ".png", "gr\u00fc\u00dfe-\u4f60\u597d.jpg"]
    found = members_of(tar_bytes([(name, b"1") for name in names], format=format))
    assert [member.name for member in found] == names


def test_modification_times_with_fractions_as_webdataset_writes_them() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.mtime = 2, 1.5
        tar.addfile(info, io.BytesIO(b"ab"))
    assert [member.name for member in members_of(file.getvalue())] == ["a.jpg"]


def test_links_folders_and_devices_are_passed_over() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("../../real.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    assert [member.name for member in members_of(file.getvalue())] == ["../../real.jpg"]


def test_samples_are_neighbours_with_one_key() -> None:
    names = "a.jpg a.cls b.txt c.json c.seg.png c.png d/e.x.jpg f.cls d/f.webp"
    data = tar_bytes([(name, b"0") for name in names.split()])
    assert sample_names(data) == [
        ("a.jpg", "a.cls"),
        ("c.png", "c.json"),
        ("d/e.x.jpg", None),
        ("d/f.webp", None),
    ]


def test_truncation_keeps_the_samples_before_it() -> None:
    data = tar_bytes([(f"{i}.jpg", bytes(1000)) for i in range(5)])
    for cut, whole in [(3 * 1536 + 100, 3), (3 * 1536 + 700, 3), (4 * 1536, 4)]:
        found = before_damage(tar_samples(reader(data[:cut]), cut))
        assert len(found) == whole


@pytest.mark.parametrize(
    ("place", "change"),
    [(0, b"X"), (124, b"8"), (124, b"\xff"), (148, b"\0\0\0\0\0\0\0\0"), (156, b"S")],
)
def test_a_damaged_header_is_noticed(place: int, change: bytes) -> None:
    data = bytearray(tar_bytes([("a.jpg", b"1")]))
    data[place : place + len(change)] = change
    with pytest.raises(TarDamage):
        members_of(bytes(data))


def test_text_is_not_a_tar() -> None:
    with pytest.raises(TarDamage, match="not a tar file"):
        members_of(b"hello world " * 100)


def test_mutated_tars_end_and_stay_within_bounds() -> None:
    random = np.random.default_rng(0)
    good = [
        tar_bytes([(LONG, bytes(600)), ("\u00fc.png", b"2"), ("a.cls", b"3")], format=f)
        for f in FORMATS
    ]
    for trial in range(600):
        data = bytearray(good[trial % 3])
        if trial % 2:
            del data[random.integers(len(data)) :]
        for place in random.integers(0, max(1, len(data)), 4):
            data[place : place + 1] = bytes([random.integers(256)])
        if trial % 3 == 0 and len(data) >= 512:  # make the check sum right again
            data[148:156] = b" " * 8
            data[148:156] = b"%06o\0 " % sum(data[:512])
        found = before_damage(tar_members(reader(bytes(data)), len(data)))
        assert all(m.offset >= 0 and m.offset + m.size <= len(data) for m in found)
