"""Shards as nobody should write them, made from a seed, and what reading them must keep to."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from franca_fast.data import CropSettings, MaskSettings, build_train_loader, check_shards
from franca_fast.data.shards import TarShard
from franca_fast.errors import InputError
from python_tests.data.files import encoded, picture

IMAGES = 8
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
CROPS = CropSettings(global_crops_size=8, local_crops_size=8, local_crops_number=0)
Mutation = Callable[[random.Random], tuple[bytes, int | None]]
"""A shard, and how many good images are in it; None where only a bound is known."""


def _images(rng: random.Random) -> list[tuple[str, bytes]]:
    members = []
    for i in range(IMAGES):
        kind, extension = rng.choice([("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
        members.append((f"{i:04d}.{extension}", encoded(picture(rng.randrange(99)), kind)))
        members.append((f"{i:04d}.cls", b"%d" % rng.randrange(10)))
    return members


def _tar(members: list[tuple[str, bytes] | tarfile.TarInfo], format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def _good(rng: random.Random) -> bytes:
    return _tar([*_images(rng)], rng.choice(FORMATS))


def _with(rng: random.Random, *extra: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [*_images(rng)]
    for one in extra:
        members.insert(rng.randrange(0, len(members) + 1, 2), one)
    return _tar(members, tarfile.PAX_FORMAT if rng.random() < 0.5 else tarfile.GNU_FORMAT)


def _png_header(width: int, height: int, data: bytes) -> bytes:
    """A PNG file that promises a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(data, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def bit_flips(rng: random.Random) -> tuple[bytes, int | None]:
    data = bytearray(_good(rng))
    for _ in range(rng.choice([1, 3, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data), None


def truncation(rng: random.Random) -> tuple[bytes, int | None]:
    data = _good(rng)
    return data[: rng.randrange(len(data))], None


def torn_block(rng: random.Random) -> tuple[bytes, int | None]:
    data = bytearray(_good(rng))
    start = rng.randrange(len(data))
    data[start : start + rng.randrange(2000)] = rng.choice([b"", rng.randbytes(700), bytes(900)])
    return bytes(data), None


def noise(rng: random.Random) -> tuple[bytes, int | None]:
    return rng.randbytes(rng.randrange(1, 9000)), 0


def wrong_members(rng: random.Random) -> tuple[bytes, int | None]:
    wrong = [
        ("x.jpg", b"#!/bin/sh\ntouch pwned\n"),
        ("y.png", encoded(picture(0), "GIF")),  # is read for what it is
        ("z.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."),
        ("e.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n(pwned) (w) file\n"),
        ("s.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("n.jpg", b""),
    ]
    return _with(rng, *wrong), IMAGES + 1


def path_tricks(rng: random.Random) -> tuple[bytes, int | None]:
    image = encoded(picture(0))
    names = ["../../pwned.png", "/pwned.png", "..\\pwned.png", "a/../../pwned.png", "~/pwned.png"]
    names += [
        "pwned;touch pwned.png",
        "\n\r\x1b[2Jpwned.png",
        "%s%n/pwned.png",
        "x" * 3000 + ".png",
    ]
    return _with(rng, *((name, image) for name in names)), IMAGES + len(names) - 1  # one is hidden


def links(rng: random.Random) -> tuple[bytes, int | None]:
    extra = []
    for i, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]):
        info = tarfile.TarInfo(f"link{i}.jpg")
        info.type, info.linkname = kind, rng.choice(["/etc/passwd", "link0.jpg", "/dev/zero", ".."])
        extra.append(info)
    return _with(rng, *extra), IMAGES


def huge_images(rng: random.Random) -> tuple[bytes, int | None]:
    side = rng.choice([20_000, 65_535, 2**31 - 1])
    return _with(rng, ("huge.png", _png_header(side, side, bytes(1 << 20)))), IMAGES


def short_pixels(rng: random.Random) -> tuple[bytes, int | None]:
    return _with(rng, ("bomb.png", _png_header(7000, 7000, bytes(5 << 20)))), IMAGES


def text_bombs(rng: random.Random) -> tuple[bytes, int | None]:
    """A PNG whose comment is far larger unpacked, and one that has thousands of comments."""
    image = encoded(picture(0))
    body = b"k\0\0" + zlib.compress(bytes(64 << 20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return _with(rng, ("bomb.png", image[:33] + chunk + image[33:])), None


def gzip_bomb(rng: random.Random) -> tuple[bytes, int | None]:
    members = [*_images(rng), ("bomb.jpg", bytes(rng.choice([1, 40]) << 20))]
    return gzip.compress(_tar([*members], tarfile.GNU_FORMAT), 6), IMAGES


def damaged_gzip(rng: random.Random) -> tuple[bytes, int | None]:
    data = bytearray(gzip.compress(_good(rng)))
    if rng.random() < 0.5:
        return bytes(data[: rng.randrange(2, len(data))]), None
    data[rng.randrange(2, len(data))] ^= 1 << rng.randrange(8)
    return bytes(data), None


def duplicates(rng: random.Random) -> tuple[bytes, int | None]:
    image = encoded(picture(1))
    return _with(rng, *[("same.png", image), ("other.txt", b"")] * 3), None


def _header(rng: random.Random, name: str, size: bytes, kind: bytes) -> bytes:
    """A header with a right check sum, whatever else is in it."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157] = size, kind
    if rng.random() < 0.5:  # where an old sparse header has its map
        header[386:512] = rng.randbytes(126)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


_SIZES = [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1\0" + bytes(9), bytes(12)]
_SIZES += [b"\x80" + bytes(10) + b"\x01", b"00000000000\0", b"9" * 12, b" " * 12]


def absurd_headers(rng: random.Random) -> tuple[bytes, int | None]:
    data = _good(rng)
    bad = b"".join(
        _header(rng, f"bad{i}.png", rng.choice(_SIZES), bytes([rng.choice(b"0SLKxgV7\0MDZ")]))
        for i in range(rng.randrange(1, 40))
    )
    return (bad + data if rng.random() < 0.5 else data[:-1024] + bad), None


def pax_attacks(rng: random.Random) -> tuple[bytes, int | None]:
    records = rng.choice(
        [
            b"11 size=-1\n",
            b"30 size=99999999999999999999\n",
            b"9999999999 path=a\n",
            b"0 path=a\n",
            b"path",
            b"22 GNU.sparse.major=1\n",
            b"26 GNU.sparse.realsize=" + b"9" * 9 + b"\n",
            b"12 path=a\0b\n" * 400,
            b"%d path=" % 60_006 + b"a" * 59_993 + b"\n",
            b"\xff" * 100,
            b"",
        ]
    )
    size = b"%011o\0" % len(records)
    attack = _header(rng, "pax", size, bytes([rng.choice(b"xgX")]))
    attack += records + bytes(-len(records) % 512)
    data = _good(rng)
    return (attack + data if rng.random() < 0.5 else data[:-1024] + attack + data), None


MUTATIONS: tuple[Mutation, ...] = (
    *(bit_flips, truncation, torn_block, noise, wrong_members, path_tricks, links),
    *(huge_images, short_pixels, text_bombs, gzip_bomb, damaged_gzip, duplicates),
    *(absurd_headers, pax_attacks),
)


def mutated(seed: int) -> tuple[str, bytes, int | None]:
    """The name of the mutation with this number, the shard, and its good images if known."""
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    rng = random.Random(seed)
    return (mutation.__name__, *mutation(rng))


def read_all_ways(path: Path, good: int | None) -> Counter[str]:
    """Indexes, checks and trains on a shard.

    Returns:
        what was found: `images`, and what was skipped by reason.

    Raises:
        AssertionError: the counts contradict each other or what is known.
    """
    index = TarShard(str(path)).index()
    refs = [index.ref(i) for i in range(len(index))]
    total = path.stat().st_size
    assert all(ref.data is not None or 0 <= ref.offset <= total - ref.size for ref in refs)
    damage = index.damage
    found: Counter[str] = Counter()
    try:
        checked = check_shards(path, num_workers=1, max_image_pixels=1 << 22)
    except InputError as error:
        assert not refs and "no images" in str(error)
        assert good in (None, 0)
        found["refused"] = 1
        return found
    bad = [one for one in checked.bad if one.location != str(path)]
    assert checked.images + len(bad) == len(refs)
    assert len(checked.bad) - len(bad) == (damage is not None)
    if good is not None:
        assert checked.images == good and damage is None
    found["images"] = checked.images
    found.update(checked.skipped)
    found.update(_trained(path, refs_count=len(refs), bad_count=len(bad)))
    return found


def _trained(path: Path, refs_count: int, bad_count: int) -> Counter[str]:
    """Two epochs of training; the loader must count each bad image once an epoch."""
    loader = build_train_loader(
        path,
        batch_size=refs_count,
        crops=CROPS,
        masking=MaskSettings(),
        patch_size=4,
        max_bad_fraction=1,
        max_image_pixels=1 << 22,
    )
    try:
        for epoch in range(1, 3):
            batch = next(loader)
            assert batch.global_crops.isfinite().all() and len(batch.keys) == refs_count
            counted = sum(n for reason, n in loader.skipped.items() if "shard" not in reason)
            assert counted == epoch * bad_count
    except InputError as error:
        assert bad_count and "cannot be used" in str(error)
        return Counter(stopped=1)
    return Counter(trained=1)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """All files in a folder and below, to see that nothing was written."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files}
