"""Finds the images in tar files, without unpacking them and without trusting them.

Only headers are read. An image is then a place in a file (or in memory, for compressed files), so
a position in the data is a few numbers and any sample can be read again. Links, devices and paths
in a tar have no meaning here: nothing is ever written.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from franca_fast.data.accounting import (
    HIDDEN,
    INNER_TAR,
    LABEL_ALONE,
    LABEL_REPEATED,
    LINK,
    REPEATED,
    SECOND_IMAGE,
    Notes,
)
from franca_fast.data.decoding import is_hidden_image, is_image_name, is_readable_name
from franca_fast.spelling import unspell

_BLOCK = 512
_LONGEST_NAME = 1 << 16
_MAGIC, _MAGIC_OFFSET = b"ustar", 257
_PIECE = 1 << 20
_PADDING = 1 << 20  # zeros behind the end that nobody wonders at
_SEARCHED = 1 << 30  # bytes looked through for good headers in a damaged tar
_REGULAR = (b"0", b"\0", b"7")
_NO_FILES = (b"1", b"2", b"3", b"4", b"6")  # links, devices and pipes
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_LABEL_EXTENSIONS = ("cls", "json")  # what says most first
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
_TARS = ("tar", "tgz")
CLASSES_KEY = "franca_fast.classes"
"""Of the global pax header in which `pack_shards` writes the names of the classes, as JSON."""
_LARGEST_PAX = 64 << 20  # bytes of a global header

Read = Callable[[int, int], bytes]
"""`read(offset, size)` gives that piece of a file, less at its end."""


class TarDamage(Exception):
    """Something in a tar cannot be read; members on both sides of it may have been found.

    Attributes:
        lost: images that are known to be lost by it.
    """

    def __init__(self, problem: str, lost: int = 0) -> None:
        super().__init__(problem)
        self.lost = lost


class Member(NamedTuple):
    """One file in a tar: its name and where its bytes lie; a link or device has none, size -1."""

    name: str
    offset: int
    size: int


class TarSample(NamedTuple):
    """One image of a tar, and the files beside it that may say its class, the likeliest first."""

    image: Member
    labels: tuple[Member, ...]


@dataclass
class TarNotes:
    """What a walk over a tar sees besides its samples.

    Attributes:
        found: members that are images by their names.
        left_out: those of them that are no sample's image, by the rule that leaves them out.
        remarks: on members with labels.
        classes: names of the labels 0, 1, ..., where the tar says them, each list with the place
            from which on it holds (several tars may be one).
    """

    found: int = 0
    left_out: Notes = field(default_factory=Notes)
    remarks: Notes = field(default_factory=Notes)
    classes: list[tuple[int, list[str]]] = field(default_factory=list)


def tar_samples(read: Read, total: int, notes: TarNotes | None = None) -> Iterator[TarSample]:
    """Finds the samples of a tar, in order.

    As in WebDataset, neighbouring members whose names agree up to the first dot of the last part
    form one sample; names without an extension, and hidden ones, belong to none. Its image is the
    member `key.jpg` (or another image extension), else the first one such as `key.something.jpg`;
    its label is in `key.cls` or `key.json`, and that of `key.something.jpg` also in
    `key.something.cls` or `key.something.json`.

    Args:
        read: reads pieces of the tar.
        total: its size in bytes.
        notes: what else is seen is put down here.

    Raises:
        TarDamage: at the end, after all samples that can be read.
    """
    from webdataset.tariterators import base_plus_ext

    notes = TarNotes() if notes is None else notes
    key, group = "", list[tuple[str, Member]]()
    damage: TarDamage | None = None
    try:
        for member in tar_members(read, total, notes):
            # WebDataset's rule takes seconds for a long path, and in folders makes one sample of
            # all hidden files there, so it gets the last part alone.
            folder, slash, base = member.name.rpartition("/")
            stem, extension = base_plus_ext(base)
            if stem is None or member.size < 0:
                _leave_out(member, notes)
                continue
            if folder + slash + stem != key:
                yield from _sample_of(group, notes)
                key, group = folder + slash + stem, []
            group.append((extension.lower(), member))
    except TarDamage as error:
        damage = error
    yield from _sample_of(group, notes)
    if damage is not None:
        raise damage


def tar_members(read: Read, total: int, notes: TarNotes | None = None) -> Iterator[Member]:
    """Walks over the regular files, links and devices of a tar (ustar, GNU and pax names).

    Where a header is damaged, or promises more than there is, the walk goes on at the next good
    header, so that one flipped bit does not cost a whole shard. Several tars one after another
    are read as one. A tar that was cut exactly between two members is taken for a whole one, as
    many programs write no end marker.

    Args:
        read: reads pieces of the tar.
        total: its size in bytes.
        notes: names of classes are put down here.

    Raises:
        TarDamage: at the end, with the first of: a wrong check sum, a member beyond the end, a
            form that is not supported, or more than padding after the end.
    """
    damage: TarDamage | None = None
    names = _Names()
    notes = TarNotes() if notes is None else notes
    offset: int | None = 0
    budget = _SEARCHED
    while offset is not None and offset < total:
        try:
            member, following = _next_member(read, offset, total, names, notes)
        except TarDamage as error:
            names = _Names()
            found = _next_header(read, offset + _BLOCK, min(total, offset + _BLOCK + budget))
            budget -= (total if found is None else found) - offset
            lost = error.lost + (damage.lost if damage else 0)
            damage = TarDamage(str(damage or error), lost)
            offset = found
        else:
            if member is not None:
                yield member
            offset = following
            if offset is not None and offset > total and damage is None:
                damage = TarDamage("truncated behind a member")
    if damage is not None:
        raise damage


@dataclass
class _Names:
    """What headers have said about the member that follows them."""

    long_name: str | None = None
    pax: dict[str, str] = field(default_factory=dict)


def _next_member(
    read: Read, offset: int, total: int, names: _Names, notes: TarNotes
) -> tuple[Member | None, int | None]:
    """Reads one header.

    Returns:
        the member, None if it is neither a regular file nor a link; where the next header is, None
        at the end.
    """
    header = read(offset, _BLOCK)
    if len(header) < _BLOCK:
        raise TarDamage("truncated in a header")
    if header[0] == 0 and not header.strip(b"\0"):
        return None, _after_the_end(read, offset, total)
    kind, size = _check_header(header)
    offset += _BLOCK
    pax = names.pax
    if kind in _REGULAR and "size" in pax:
        size = _whole_number(pax["size"])
    end = offset if kind in _WITHOUT_DATA else offset + size
    if kind in (b"L", b"x"):
        if size > _LONGEST_NAME:
            raise TarDamage("a name that is too long")
        if end > total:
            raise TarDamage("truncated in a member")
        record = read(offset, size)
        if kind == b"L":
            names.long_name = _text(record)
        else:
            names.pax = _pax_records(record)
        return None, end + -end % _BLOCK
    name = pax.get("path") or names.long_name or _header_name(header)
    if kind == b"S" or "GNU.sparse.major" in pax:
        raise TarDamage("a sparse member", is_image_name(pax.get("GNU.sparse.name", name)))
    if end > total:
        raise TarDamage("truncated in a member", kind in _REGULAR and is_image_name(name))
    if kind == b"g" and size <= _LARGEST_PAX:
        _note_classes(notes, offset, read(offset, size))
    if kind not in (b"K", b"g"):
        names.long_name, names.pax = None, {}
    following = end + -end % _BLOCK
    if kind in _NO_FILES:
        return Member(name, offset, -1), following
    regular = kind in _REGULAR and not name.endswith("/")
    return Member(name, offset, size) if regular else None, following


def _after_the_end(read: Read, offset: int, total: int) -> int | None:
    """Where another tar begins behind the block of zeros at `offset`; None if none does."""
    found = _next_header(read, offset, min(total, offset + _PADDING))
    if found is None and total - offset > _PADDING:
        raise TarDamage(f"{total - offset} bytes after its end")
    return found


def _next_header(read: Read, offset: int, end: int) -> int | None:
    """Finds the next good header (ustar, GNU or pax) that begins a block; None if there is none."""
    length = 4 * _BLOCK  # the next header is often near, and a tar may be full of bad ones
    while offset + _BLOCK <= end:
        piece = read(offset, min(length, end - offset))
        at = piece.find(_MAGIC)
        while at >= 0:
            start = at - _MAGIC_OFFSET
            if start >= 0 and start % _BLOCK == 0 and start + _BLOCK <= len(piece):
                with suppress(TarDamage):
                    _check_header(piece[start : start + _BLOCK])
                    return offset + start
            at = piece.find(_MAGIC, at + 1)
        if len(piece) < length:
            return None
        offset += length
        length = min(2 * length, _PIECE)
    return None


def _check_header(header: bytes) -> tuple[bytes, int]:
    """The type and the size that a header states, if its check sum is right."""
    stated = header[148:156]
    # The lower half of Adler-32 is 1 + the sum of all bytes, modulo 65521, and quick.
    total = (zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF) - 1
    if total % 65521 != _number(stated) % 65521:
        raise TarDamage("a damaged header, or not a tar file")
    return header[156:157], _number(header[124:136])


def _number(field: bytes) -> int:
    """A number in octal digits, or in binary with the first bit set (GNU)."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise TarDamage("a negative number in a header")
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):  # int() would also take signs, prefixes and underscores
        raise TarDamage("a damaged header, or not a tar file")
    return int(digits or b"0", 8)


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        raise TarDamage("a damaged number in a pax header")
    return int(text)


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345] != 0:
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header: their length, a space, `key=value` and a line feed."""
    records = {}
    while data:
        digits, _, _ = data.partition(b" ")
        length = _whole_number(digits.decode("ascii", "replace"))
        record = data[len(digits) + 1 : length - 1]
        name, equals, value = record.partition(b"=")
        if length <= len(digits) or length > len(data) or not equals:
            raise TarDamage("a damaged pax header")
        records[_text(name)] = _text(value)
        data = data[length:]
    return records


def _note_classes(notes: TarNotes, offset: int, data: bytes) -> None:
    """Puts down the names of the classes that a global pax header says, if it says any."""
    with suppress(TarDamage, ValueError, KeyError, RecursionError):
        names = json.loads(_pax_records(data)[CLASSES_KEY])
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            notes.classes.append((offset, [unspell(name) for name in names]))


def _sample_of(group: list[tuple[str, Member]], notes: TarNotes) -> Iterator[TarSample]:
    """The sample that neighbouring members form, if there is an image among them."""
    images = [item for item in group if is_image_name(item[1].name)]
    plain = {ext for ext, _ in group if "." not in ext and ext not in _TARS}
    if len(images) == 1 and len(plain) == len(group):
        notes.found += 1  # as of most samples
        yield TarSample(images[0][1], tuple(_labels(group, _LABEL_EXTENSIONS)))
    elif group:
        yield from _odd_sample_of(group, images, notes)


def _odd_sample_of(
    group: list[tuple[str, Member]], images: list[tuple[str, Member]], notes: TarNotes
) -> Iterator[TarSample]:
    """The same for members with several dots, and with other than one image."""
    for _, member in group:
        if member.name.lower().endswith(TAR_EXTENSIONS):
            notes.found += 1
            notes.left_out.add(INNER_TAR, member.name)
    parts = {_part(ext) for ext, _ in images}
    for ext, member in group:
        # JSON of its own is common. `key.cls` is of whatever image the sample has.
        if f".{ext}".endswith(".cls") and _part(ext) not in (parts | {""} if images else parts):
            notes.remarks.add(LABEL_ALONE, member.name)
    if not images:
        return
    # The first of a format that is read, if there is one, and without a second dot.
    chosen, image = min(
        images, key=lambda item: (not is_readable_name(item[1].name), "." in item[0])
    )
    names = set[str]()
    for _, member in images:
        notes.found += 1
        if member is not image:
            notes.left_out.add(REPEATED if member.name in names else SECOND_IMAGE, member.name)
        names.add(member.name)
    # For `22.05.png` also `22.05.cls`, which is no label by WebDataset's rule, says the class.
    part = _part(chosen)
    wanted = [name for ext in _LABEL_EXTENSIONS for name in (ext, f"{part}.{ext}")]
    labels = list(_labels(group, wanted))
    known = set[str]()
    for member in labels:
        if member.name.lower() in known:  # the first is asked first
            notes.remarks.add(LABEL_REPEATED, member.name)
        known.add(member.name.lower())
    yield TarSample(image, tuple(labels))


def _labels(group: list[tuple[str, Member]], wanted: Sequence[str]) -> Iterator[Member]:
    """Members with some extensions, in the order of these."""
    return (member for name in wanted for ext, member in group if ext == name)


def _part(extension: str) -> str:
    """What stands between the first and the last dot: "05" for `05.png`."""
    return extension.rpartition(".")[0]


def _leave_out(member: Member, notes: TarNotes) -> None:
    """Puts down an image that belongs to no sample."""
    if is_image_name(member.name) or is_hidden_image(member.name):
        notes.found += 1
        notes.left_out.add(LINK if member.size < 0 else HIDDEN, member.name)
