from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.hub import chunked_archive, read_state_dict
from franca_fast.hub.chunked_archive import archive_parts, is_archive, unpack

CONTENT = b"weights " * 5000


def packed(*members: tuple[str, bytes | None, bytes]) -> bytes:
    """A .tar.gz of members (name, content or None for no content, type)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content or b""), "/etc/passwd"
            tar.addfile(member, io.BytesIO(content) if content is not None else None)
    return file.getvalue()


def cut(data: bytes, folder: Path, n_parts: int = 3) -> list[Path]:
    step = -(-len(data) // n_parts)
    parts = []
    for i in range(n_parts):
        part = folder / f"w_chunked.tar.gz.part_a{'abc'[i]}"
        part.write_bytes(data[i * step : (i + 1) * step])
        parts.append(part)
    return parts


GOOD = packed(("folder", None, tarfile.DIRTYPE), ("folder/w.pth", CONTENT, tarfile.REGTYPE))


@pytest.mark.parametrize("name", ["w.tar.gz", "w_chunked.tar.gz.part_aa", "w.tar.gz.part_ac"])
def test_names_of_archives(name: str) -> None:
    assert is_archive(name)
    assert not is_archive(name + ".pth")


def test_parts_are_joined_and_unpacked(tmp_path: Path) -> None:
    parts = cut(GOOD, tmp_path)
    for given in (tmp_path / "w_chunked.tar.gz", *parts):
        assert archive_parts(given) == parts
    assert unpack(parts, tmp_path / "out.pth").read_bytes() == CONTENT


def test_whole_archive(tmp_path: Path) -> None:
    file = tmp_path / "w.tar.gz"
    file.write_bytes(GOOD)
    assert unpack(archive_parts(file), tmp_path / "out.pth").read_bytes() == CONTENT


def test_missing_parts_are_named(tmp_path: Path) -> None:
    parts = cut(GOOD, tmp_path)
    parts[1].unlink()
    with pytest.raises(InputError, match=r"lacks w_chunked\.tar\.gz\.part_ab"):
        archive_parts(parts[0])
    with pytest.raises(InputError, match="no such file"):
        archive_parts(tmp_path / "other.tar.gz")


def refused(data: bytes, folder: Path, complaint: str) -> None:
    parts = cut(data, folder)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=complaint):
        unpack(parts, folder / "out.pth")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("w.pth", tarfile.SYMTYPE),
        ("w.pth", tarfile.LNKTYPE),
        ("w.pth", tarfile.FIFOTYPE),
        ("w.pth", tarfile.CHRTYPE),
        ("../w.pth", tarfile.REGTYPE),
        ("/w.pth", tarfile.REGTYPE),
        ("w.py", tarfile.REGTYPE),
    ],
)
def test_anything_but_one_plain_file_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    content = CONTENT if kind == tarfile.REGTYPE else None
    refused(packed((name, content, kind)), tmp_path, "refused, it holds .* accepted: one .pth")


def test_second_file_and_empty_archive_are_refused(tmp_path: Path) -> None:
    two = packed(("a.pth", CONTENT, tarfile.REGTYPE), ("b.pth", CONTENT, tarfile.REGTYPE))
    refused(two, tmp_path, r"it holds 'b\.pth'")
    refused(packed(("folder", None, tarfile.DIRTYPE)), tmp_path, r"holds no \.pth file")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    flipped = bytearray(GOOD)
    flipped[-6] ^= 1  # in the checksum at the end
    refused(bytes(flipped), tmp_path, "damaged")
    refused(GOOD[:-20], tmp_path, "damaged, or a part is missing at its end")
    refused(b"no archive at all", tmp_path, "damaged")
    refused(gzip.compress(b"no tar"), tmp_path, "damaged")


def test_archive_that_never_ends_is_refused(tmp_path: Path) -> None:
    long = gzip.compress(gzip.decompress(GOOD) + bytes(2 * chunked_archive._PADDING))
    refused(long, tmp_path, "more data follows its end")


def test_too_large_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_archive, "_LARGEST", 100)
    refused(GOOD, tmp_path, "unpacks to 40000 bytes")


def test_weights_are_read_from_an_archive(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"teacher": {"a": torch.arange(3.0)}}, file)
    parts = cut(packed(("w.pth", file.getvalue(), tarfile.REGTYPE)), tmp_path)
    assert torch.equal(read_state_dict(parts[0])["a"], torch.arange(3.0))
