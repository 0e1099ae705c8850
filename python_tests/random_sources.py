"""Random folders and tars of tiny images, with everything that people's files have."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Squares of 4 and 8 pixels, and what a crop of 4 pixels cuts without any doubt.
SIZES = ((4, 4), (8, 8), (8, 8), (4, 8), (8, 4), (6, 4))
ENCODERS = {"png": "PNG", "PNG": "PNG", "bmp": "BMP", "ppm": "PPM", "tif": "TIFF", "gif": "GIF"}
LABELS = (b"0", b"3", b" 12\n", b"7", b"cat", b"dog", b"caf\xe9", b"\xca\xee", b"", b"-1")
LABELS += (b"\x01\x02", b"3.5", b"99999999999999", b'{"label": 1}', b'{"cls": "cat"}', b"{bad")
JSONS = (b'{"caption": "a cat"}', b'{"label": 4}', b'{"class": "dog"}', b'{"label": [1]}', b"{")
# Latin-1, GBK, Shift-JIS, UTF-8 that was cut; and what shells, shards and JSON stumble over.
STEMS = (
    *(b"caf\xe9", b"\xd6\xd0\xce\xc4", b"\x83\x65\x83\x58\x83\x67", b"na\xc3", "日本".encode()),
    *(b"a b", b" x", b"new\nline", b"back\\slash", b"\\xe9", b"it's", b"-r", b"#1", b"%d", b"a\tb"),
    *(b"__meta__", b"a,b", b"x=1", b"\x7f", "e\u0301".encode(), b"$HOME", b"*", b"{0..3}"),
)
FOLDERS = (
    b"",
    b"",
    b"d/",
    b"n01/",
    b"b.d/",
    b".hidden/",
    b"__MACOSX/",
    b"./",
    b"caf\xe9/",
    b"d/e/",
)


def picture(draw: random.Random, kind: str = "png") -> bytes:
    """The file of a random picture."""
    width, height = draw.choice(SIZES)
    if kind in ("jpg", "jpeg"):
        width = height = 4
    pixels = np.frombuffer(draw.randbytes(3 * width * height), np.uint8).reshape(height, width, 3)
    file = io.BytesIO()
    options = {"quality": 95} if kind in ("jpg", "jpeg") else {}
    Image.fromarray(pixels).save(file, ENCODERS.get(kind, "JPEG"), **options)
    return file.getvalue()


def image_file(draw: random.Random) -> tuple[bytes, bytes]:
    """An extension, and a file that has it; one in six cannot be used."""
    kind = draw.choice([*ENCODERS, "png", "png", "jpg", "jpeg"])
    data = picture(draw, kind)
    damage = draw.randrange(28)
    if damage == 4:
        return b".psd", b"8BPS\0\1" + bytes(40)
    if damage < 4:
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        text = b"<html>404 Not Found</html>"
        data = (b"", text, data[: len(data) // 2], bytes(flipped))[damage]
    return b"." + kind.encode(), data


def stem(draw: random.Random) -> bytes:
    chosen = draw.randrange(12)
    if chosen == 0:
        return b"long" * draw.choice((25, 26, 55))  # at and above 100 bytes
    return draw.choice(STEMS) if chosen < 5 else b"%d" % draw.randrange(12)


def members(draw: random.Random) -> list[tuple[bytes, bytes]]:
    """Names and contents of the members of a tar, in any order."""
    found = list[tuple[bytes, bytes]]()
    for _ in range(draw.randrange(3, 9)):
        key = draw.choice(FOLDERS) + stem(draw)
        sample = [(key + extension, data) for extension, data in [image_file(draw)]]
        if draw.random() < 0.3:
            extension, data = image_file(draw)
            sample.append((key + draw.choice((b".left", b".05", b"", b".a.b")) + extension, data))
        if draw.random() < 0.15:
            sample.append((sample[0][0], picture(draw)))
        if draw.random() < 0.6:
            sample.append((key + draw.choice((b".cls", b".CLS")), draw.choice(LABELS)))
        if draw.random() < 0.2:
            sample.append((key + draw.choice((b".05.cls", b".left.cls", b".left.json")), b"5"))
        if draw.random() < 0.25:
            sample.append((key + b".json", draw.choice(JSONS)))
        if draw.random() < 0.2:
            folder, slash, base = key.rpartition(b"/")
            sample.append((folder + slash + b"._" + base + b".png", b"\0\5\26\7"))
        if draw.random() < 0.15:
            others = (b".txt", b"", b".seg.npy", b".tar", b"/noext", b".unknown")
            sample.append((key + draw.choice(others), b"x"))
        draw.shuffle(sample)
        found += sample
    for _ in range(draw.choice((0, 0, 1, 3))):  # apart from their neighbours
        found.append(found.pop(draw.randrange(len(found))))
    return found


def write_tar(draw: random.Random, path: Path) -> None:
    """Writes a tar; its name says whether it is compressed."""
    file, formats = io.BytesIO(), (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    format = draw.choice(formats)
    with tarfile.open(
        fileobj=file, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for name, data in members(draw):
            if format == tarfile.USTAR_FORMAT and len(name) > 100:
                continue
            info = tarfile.TarInfo(os.fsdecode(name))
            kind = draw.randrange(30)
            if kind < 2:
                info.type, info.linkname = (tarfile.LNKTYPE, tarfile.SYMTYPE)[kind], "0.png"
            elif kind == 2:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.size else None)
        end = tar.offset
    data = file.getvalue()
    if path.name.endswith("gz"):
        data = gzip.compress(data)
    elif draw.random() < 0.15:
        data = data[:end] if draw.random() < 0.3 else data[: end - 512]  # of the last file's bytes
    path.write_bytes(data)


def write_folder(draw: random.Random, folder: Path) -> None:
    """Writes class folders, hidden files and folders, links, loops."""
    root = os.fsencode(folder)
    for _ in range(draw.randrange(4, 12)):
        extension, data = image_file(draw)
        if draw.random() < 0.15:
            extension = draw.choice((b".txt", b"", b".05.png", b".a.b.PNG", b".json", b".png.bak"))
        dots = draw.choice((b"", b"", b"", b"", b"", b"", b"._", b"."))
        name = draw.choice(FOLDERS) + dots + stem(draw) + extension
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(path):
            continue
        with open(path, "wb") as file:
            file.write(data)
    inside = [os.path.join(root, name) for name in sorted(os.listdir(root))]
    folders = [path for path in inside if os.path.isdir(path)]
    places = [root, *folders]
    for i in range(draw.choice((0, 0, 1, 3))):
        targets = (draw.choice(inside), draw.choice(places), b"gone", b"loop%d.png" % i, b"l" * 256)
        link = os.path.join(draw.choice(places), b"loop%d" % i + draw.choice((b"", b".png")))
        os.symlink(draw.choice(targets), link)
    if draw.random() < 0.1:
        os.mkfifo(os.path.join(root, b"pipe.png"))
    if draw.random() < 0.1:
        os.makedirs(os.path.join(root, b"a folder.png", b"empty"))


def write_source(seed: int, folder: Path) -> Path:
    """Makes random source `seed`: a folder of images, or one of one to three tars."""
    draw = random.Random(seed)
    folder.mkdir()
    if seed % 3 == 0:
        write_folder(draw, folder)
    else:
        for i in range(draw.choice((1, 1, 1, 2, 3))):
            write_tar(draw, folder / f"s-{i}.{draw.choice(('tar', 'tar', 'tar.gz', 'tgz'))}")
        if draw.random() < 0.1:
            (folder / "._s-0.tar").write_bytes(b"\0\5\26\7" + bytes(80))
    return folder
