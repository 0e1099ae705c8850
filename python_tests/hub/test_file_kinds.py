"""A file that is no weights is told what it is."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from franca_fast.errors import InputError
from franca_fast.hub import load_head, load_model, read_state_dict
from franca_fast.hub.file_kinds import kind_of_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"


def tar_of(*names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def zip_of(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return content.getvalue()


def torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, content)
    return content.getvalue()


KINDS: list[tuple[bytes, str]] = [
    (b"", "an empty file"),
    (LFS, "a Git LFS pointer"),
    (PAGE, "an HTML page"),
    (b"\xef\xbb\xbf \n<HTML><body>log in</body>", "an HTML page"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML page"),
    (tar_of("a.png", "b.png"), "a tar archive of a.png, b.png"),
    (tar_of(*"abcd"), r"a tar archive of a, b, c, \.\.\."),
    (tar_of(), "damaged"),
    (zip_of("x/y.txt"), "a zip archive of x/y.txt"),
    (zip_of(), "a zip archive of nothing"),
    (gzip.compress(b"a"), "compressed by gzip"),
    (pickle.dumps(Path), "a Python pickle, of which nothing was run"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize(("content", "kind"), KINDS)
def test_weights_of_another_kind_are_refused_with_that_kind(
    tmp_path: Path, content: bytes, kind: str, suffix: str
) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"weights '.*w{suffix}'.*{kind}"):
        read_state_dict(file)


@pytest.mark.parametrize("load", [load_model, load_head])
@pytest.mark.parametrize("name", ["w.zip", "w.tar", "w.html", "w"])
def test_a_suffix_of_no_weights_is_told_with_the_kind(
    tmp_path: Path, load: Callable[[Path], object], name: str
) -> None:
    content = {"w.zip": zip_of("a"), "w.tar": tar_of("a"), "w.html": PAGE, "w": LFS}[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"\(a.*; accepted: \.safetensors"):
        load(tmp_path / name)


@pytest.mark.parametrize("content", [LFS, PAGE, tar_of("w.pth"), b""])
@pytest.mark.parametrize("name", ["w.tar.gz", "w.tar.gz.part_aa"])
def test_an_archive_of_another_kind(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"archive '.*{name}': .*it is an? "):
        load_model(tmp_path / name)


def test_the_other_form_of_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(save({"a": torch.zeros(2)}))
    with pytest.raises(InputError, match=r"whose name ends in \.safetensors"):
        read_state_dict(tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(torch_file())
    with pytest.raises(InputError, match=r"torch\.save, whose name ends in \.pth"):
        read_state_dict(tmp_path / "w.safetensors")


def test_unknown_bytes_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"no weights at all")
    assert kind_of_file(tmp_path / "w") is None
