from __future__ import annotations

import io
import posixpath
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from franca_fast.data.decoding import is_image_name
from franca_fast.data.tar_index import Member, Read, TarDamage, TarNotes, tar_members, tar_samples
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


def sample_names(data: bytes) -> list[tuple[str, list[str]]]:
    samples = tar_samples(reader(data), len(data))
    return [(image.name, [label.name for label in labels]) for image, labels in samples]


def notes_of(data: bytes) -> TarNotes:
    """What a walk over a tar sees besides its samples; the sum is checked."""
    notes = TarNotes()
    used = len(list(tar_samples(reader(data), len(data), notes)))
    assert notes.found == used + sum(noted.total for noted in notes.left_out.values())
    return notes


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
    regular = [member.name for member in members_of(file.getvalue()) if member.size >= 0]
    assert regular == ["../../real.jpg"]
    names = ("link.jpg", "hard.jpg", "device.jpg", "pipe.jpg")
    assert notes_of(file.getvalue()).left_out == {"link or device in a tar": (4, names)}


def test_samples_are_neighbours_with_one_key() -> None:
    names = "a.jpg a.cls b.txt c.json c.seg.png c.png d/e.x.jpg f.cls d/f.webp"
    data = tar_bytes([(name, b"0") for name in names.split()])
    assert sample_names(data) == [
        ("a.jpg", ["a.cls"]),
        ("c.png", ["c.json"]),
        ("d/e.x.jpg", []),
        ("d/f.webp", []),
    ]


ODD_NAMES = {
    "no extension": ("a.jpg README a.cls LICENSE b.png", 2),
    "hidden": (".a.jpg a.jpg .b.cls d/.c.jpg d/c.jpg d/.c.cls d/c.cls", 2),
    "apple double": ("./._a.jpg ./a.jpg ./._a.cls ./a.cls __MACOSX/._a.jpg m/._b.jpg m/b.jpg", 2),
    "several dots": ("a.seg.png a.jpg a..jpg b.x.y.png b.cls .. d.e/f.jpg d.e/f.cls d.e/g", 3),
    "folders": ("a/b.jpg a/b.cls a//b.cls /c.jpg c.jpg c.cls ../../d.jpg e.f/../g.png", 5),
    "case": ("A.JPG a.jpg a.CLS b.Jpeg b.cls", 3),
    "letters": ("a\nb.jpg a\nb.cls d.e\n/f.jpg %s.png ~/g.png ..\\h.png \u4f60.jpg \u4f60.cls", 5),
    "metadata": ("__key__ __x__.json a.jpg a.cls", 1),
    "label first": ("a.cls a.json a.txt a.jpg b.json c.png c.cls", 2),
    "apart": ("a.jpg b.jpg a.cls", 2),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("names", "expected"), ODD_NAMES.values(), ids=ODD_NAMES)
def test_samples_are_those_of_the_webdataset_library(
    names: str, expected: int, format: int, tmp_path: Path
) -> None:
    members = [(name, name.encode()) for name in names.split(" ")]
    data = tar_bytes(members, format=format)
    (tmp_path / "s.tar").write_bytes(data)
    # It makes one sample of all hidden files of a folder, which are none of ours.
    library = webdataset.WebDataset(
        str(tmp_path / "s.tar"),
        shardshuffle=False,
        select_files=lambda name: not posixpath.basename(name).startswith("."),
    )
    theirs = []
    for sample in library:
        images = [name for name in sample if is_image_name(f"x.{name}")]
        if images:
            image = sample[min(images, key=lambda name: "." in name)]
            theirs.append((sample["__key__"], image, sample.get("cls")))
    ours = []
    for sample in tar_samples(reader(data), len(data)):
        members = (sample.image, *sample.labels[:1])
        image, label = (*(data[m.offset : m.offset + m.size] for m in members), None)[:2]
        folder, slash, base = sample.image.name.rpartition("/")
        ours.append((folder + slash + base.partition(".")[0], image, label))
    # It loses what lies in a folder with a dot and a line feed in its name.
    assert [one for one in ours if one[0] != "d.e\n/f"] == theirs
    assert len(ours) == expected


def test_a_path_of_many_folders_takes_no_time() -> None:
    data = tar_bytes([("a/" * 30_000 + "b.jpg", b""), ("a/" * 30_000 + "b", b"")])
    began = time.process_time()
    assert len(sample_names(data)) == 1
    assert time.process_time() - began < 1  # WebDataset's own rule takes six seconds for one name


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


def damage_of(data: bytes) -> TarDamage:
    with pytest.raises(TarDamage) as caught:
        members_of(data)
    return caught.value


def test_truncation_in_the_padding_is_noticed() -> None:
    data = tar_bytes([(f"{i}.jpg", bytes(1000)) for i in range(5)])
    assert str(damage_of(data[: 3 * 1536 - 12])) == "truncated behind a member"


def test_the_walk_goes_on_behind_damage() -> None:
    names = [f"{i}.jpg" for i in range(9)]
    whole = tar_bytes([(name, name.encode() * 300) for name in names])
    step = len(whole) // 9 // 512 * 512
    step = next(i for i in range(512, step + 513, 512) if whole[i : i + 5] == b"1.jpg")
    for change in (b"\xff" * 12, b"77777777777\0"):  # no number; far beyond the end
        data = bytearray(whole)
        data[4 * step + 124 : 4 * step + 136] = change
        data[4 * step + 148 : 4 * step + 156] = b" " * 8
        data[4 * step + 148 : 4 * step + 156] = b"%06o\0 " % sum(data[4 * step : 4 * step + 512])
        found = before_damage(tar_members(reader(bytes(data)), len(data)))
        assert [member.name for member in found] == [name for name in names if name != "4.jpg"]
    assert damage_of(bytes(data)).lost == 1
    data = bytearray(whole)
    del data[2 * step + 700 : 2 * step + 700 + 512]  # everything behind is moved
    found = before_damage(tar_members(reader(bytes(data)), len(data)))
    assert [member.name for member in found] == [*names[:3], *names[4:]]


def test_a_sparse_image_is_lost_and_no_other() -> None:
    def header(name: str, kind: bytes, size: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        return info.tobuf(tarfile.GNU_FORMAT)

    good = tar_bytes([("a.jpg", b"1")])[:1024]
    data = good + header("b.jpg", b"S", 1 << 40) + bytes(512) + good + bytes(1024)
    assert [m.name for m in before_damage(tar_members(reader(data), len(data)))] == ["a.jpg"] * 2
    assert (damage_of(data).lost, str(damage_of(data))) == (1, "a sparse member")


def test_several_tars_in_one_file_are_read_as_one() -> None:
    data = tar_bytes([("a.jpg", b"1")]) + tar_bytes([("b.jpg", b"2")])
    assert [member.name for member in members_of(data)] == ["a.jpg", "b.jpg"]


def test_a_gap_of_zeros_is_damage_and_what_follows_is_found() -> None:
    data = tar_bytes([("a.jpg", b"1")]) + bytes(3 << 20) + tar_bytes([("b.jpg", b"2")])
    found = before_damage(tar_members(reader(data), len(data)))
    assert [member.name for member in found] == ["a.jpg", "b.jpg"]
    assert "bytes after its end" in str(damage_of(data))


def test_the_search_in_a_damaged_tar_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("franca_fast.data.tar_index._SEARCHED", 2048)
    good = tar_bytes([("a.jpg", b"1")])
    for gap, count in [(1024, 1), (4096, 0)]:
        data = b"\xff" * gap + good
        assert len(before_damage(tar_members(reader(data), len(data)))) == count


@pytest.mark.parametrize("size", [b"-1", b"-2000", b"0o17", b"1_0", b"+7"])
def test_a_size_is_nothing_but_digits(size: bytes) -> None:
    data = bytearray(tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2")]))
    data[1024 + 124 : 1024 + 136] = size.ljust(12, b"\0")
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    found = before_damage(tar_members(reader(bytes(data)), len(data)))  # -2000 would go in circles
    assert [member.name for member in found] == ["a.jpg"]


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


LEFT_OUT = {
    "22.01.png 22.02.png 22.03.png": {"another image of the same sample": 2},
    "x.left.jpg x.right.jpg y.jpg": {"another image of the same sample": 1},
    "a.jpg a.seg.png a.depth.png a.json": {"another image of the same sample": 2},
    "a.png a.png b.png": {"repeated name in one sample": 1},
    "a.png a.cls a.png a.png": {"repeated name in one sample": 2},
    "a.png b.png a.png": {},  # apart they are samples of their own
    "._a.png a.png a.cls d/._b.png d/b.png": {"hidden file": 2},
    "a.png ._a.cls a.cls": {},
    "a.png inner.tar b/inner.tgz": {"tar in a tar": 2},
    "a.jpg a.txt b.txt README": {},
}


@pytest.mark.parametrize(("names", "expected"), LEFT_OUT.items(), ids=LEFT_OUT)
def test_what_is_left_out_is_counted_by_rule(names: str, expected: dict[str, int]) -> None:
    notes = notes_of(tar_bytes([(name, b"0") for name in names.split()]))
    assert {rule: noted.total for rule, noted in notes.left_out.items()} == expected


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("a.png a.json a.cls", ["a.cls", "a.json"]),
        ("a.cls a.png a.cls", ["a.cls", "a.cls"]),
        ("a.jpg ._a.jpg a.cls", ["a.cls"]),
        ("d/a.jpg d/._a.jpg d/a.cls", ["d/a.cls"]),
        ("a.JPG a.CLS", ["a.CLS"]),
    ],
)
def test_all_members_that_may_have_the_label_belong_to_a_sample(
    names: str, labels: list[str]
) -> None:
    data = tar_bytes([(name, b"0") for name in names.split()])
    assert [found for _, found in sample_names(data)] == [labels]


@pytest.mark.parametrize("names", ["a.psd a.jpg", "a.jpg a.psd", "a.psd a.left.jpg"])
def test_an_image_that_is_read_comes_before_one_that_is_not(names: str) -> None:
    [(image, _)] = sample_names(tar_bytes([(name, b"0") for name in names.split()]))
    assert image.endswith(".jpg")


@pytest.mark.parametrize("names", ["a.jpg b.jpg a.cls b.cls", "a.cls b.cls", "b/a.cls a.jpg c.cls"])
def test_labels_without_an_image_are_noted(names: str) -> None:
    remarks = notes_of(tar_bytes([(name, b"0") for name in names.split()])).remarks
    assert {rule: noted.total for rule, noted in remarks.items()} == {
        "label without an image beside it": 2
    }


BYTES = {
    "latin-1": [b"caf\xe9.png", b"caf\xe8.png", b"na\xefve.png"],
    "gbk": ["\u4f60.png".encode("gbk"), "\u597d.png".encode("gbk")],
    "shift-jis": ["\u8868.png".encode("shift_jis"), "\u793a.png".encode("shift_jis")],
    "cut": [b"\xe4\xbd.png", b"\xe4\xbe.png", b"\xff\xfe.png"],
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("names", BYTES.values(), ids=BYTES)
def test_names_keep_their_bytes(names: list[bytes], format: int) -> None:
    given = [name.decode("utf-8", "surrogateescape") for name in names]
    long = "x" * 200 + "/"
    given += [long + name for name in given] if format != tarfile.USTAR_FORMAT else []
    options = {"encoding": "utf-8", "errors": "surrogateescape"}
    data = tar_bytes([(name, b"0") for name in given], format=format, **options)
    assert [name for name, _ in sample_names(data)] == given


def test_names_of_classes_hold_from_where_they_stand() -> None:
    def header(names: str) -> bytes:
        return tarfile.TarInfo.create_pax_global_header({"franca_fast.classes": names})

    tars = header('["a", "b\\\\xe9"]'), tar_bytes([("a.jpg", b"")]), header('["c"]')
    data = b"".join((*tars, header("[1]"), header("damaged"), tar_bytes([("b.jpg", b"")])))
    first, second = notes_of(data).classes
    assert first[1] == ["a", "b\udce9"] and second[1] == ["c"]
    assert first[0] < second[0]


@pytest.mark.parametrize(
    ("names", "repeated"),
    [
        ("a.png a.cls a.cls", ["a.cls"]),
        ("a.cls a.png a.cls a.cls b.png b.cls", ["a.cls", "a.cls"]),
        ("a.png a.json a.cls a.json", ["a.json"]),
        ("a.png a.cls a.CLS", ["a.CLS"]),
        ("22.05.png 22.05.cls 22.05.cls", ["22.05.cls"]),
        ("a.png a.cls a.json b.png b.cls", []),
    ],
)
def test_labels_that_are_repeated_in_a_sample_are_noted(names: str, repeated: list[str]) -> None:
    remarks = notes_of(tar_bytes([(name, b"0") for name in names.split()])).remarks
    assert [name for noted in remarks.values() for name in noted.names] == repeated
    assert set(remarks) <= {"label repeated in one sample"}
