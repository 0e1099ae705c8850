"""What becomes of images, counted: found = used + skipped + left out. The one place for it.

- Skipped: an image that should have been used and cannot be, such as a damaged one.
- Left out: an image that a rule passes over, such as the second one of a sample.
- A remark: something about an image that is used, such as a label that is not understood.

Each is counted by its reason, a short phrase, and named in the log.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from franca_fast.errors import InputError
from franca_fast.spelling import spell

logger = logging.getLogger(__name__)

# The rules by which images are left out.
HIDDEN = "hidden file"
SECOND_IMAGE = "another image of the same sample"
REPEATED = "repeated name in one sample"
LINK = "link or device in a tar"
INNER_TAR = "tar in a tar"  # each counts as one image, as nobody has looked into it
# Remarks on labels.
LABEL_ALONE = "label without an image beside it"
LABEL_UNREAD = "label that is not understood"
LABEL_REPEATED = "label repeated in one sample"
LABELS = (LABEL_ALONE, LABEL_UNREAD, LABEL_REPEATED)

# How many the log names: of what is skipped in all, and of each rule and kind of remark, which may
# concern every sample of a data set.
_MOST_NAMED = {"skipped": 10_000, "left out": 20, "noted": 20}
_RECENT_SAMPLES = 10_000  # the rate of bad samples is taken over about this many
_FEWEST_SAMPLES = 1_000  # so that a few bad ones at the beginning stop nothing
_named: dict[tuple[str, str], set[int]] = {}  # hashes of what the log has named


@dataclass(frozen=True)
class BadSample:
    """A sample (or a shard) that could not be used.

    Attributes:
        location: where it lies.
        reason: one of a few short phrases.
        detail: what else is known.
        count: images that are lost with it, as far as is known; 1 for a shard of unknown contents.
        of: images that there were, the lost ones included.
    """

    location: str
    reason: str
    detail: str = ""
    count: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"'{spell(self.location)}' ({self.reason})"


class Noted(NamedTuple):
    """What a rule left out in one shard or folder, or what a remark is about.

    Attributes:
        total: how many.
        names: of the first ones.
    """

    total: int
    names: tuple[str, ...]


class Notes(dict[str, Noted]):
    """Reason -> what it concerns in one shard or folder; names are kept of the first few.

    Example:
        >>> notes = Notes()
        >>> notes.add(HIDDEN, "._a.jpg")
        >>> notes
        {'hidden file': Noted(total=1, names=('._a.jpg',))}
    """

    MOST_NAMES = 20

    def add(self, reason: str, name: str) -> None:
        """Counts one more."""
        total, names = self.get(reason, Noted(0, ()))
        self[reason] = Noted(total + 1, (*names, name) if total < self.MOST_NAMES else names)

    def listed(self, place: str, separator: str = ":") -> Iterable[BadSample]:
        """One entry for each name, and one for all the others of a reason."""
        for reason, (total, names) in self.items():
            for name in names:
                yield BadSample(f"{place}{separator}{name}", reason)
            if total > len(names):
                others = total - len(names)
                yield BadSample(place, reason, f"{others} more", others, others)


class Opened(NamedTuple):
    """What is known of the images of a shard or folder before any is decoded.

    Attributes:
        found: all image files there, by their names; of a damaged shard the lost ones too.
        skipped: what is wrong with it as a whole.
        left_out, remarks: see the module.
    """

    found: int = 0
    skipped: tuple[BadSample, ...] = ()
    left_out: tuple[BadSample, ...] = ()
    remarks: tuple[BadSample, ...] = ()

    def leaving_out(self, entries: tuple[BadSample, ...]) -> Opened:
        """The same with further images that are left out."""
        found = self.found + sum(entry.count for entry in entries)
        return self._replace(found=found, left_out=self.left_out + entries)


class SkipCounter(Counter[str]):
    """Counts what was skipped, by reason, and names it in the log.

    It is counted each time it is met, and named once in the life of the process: in the next epoch
    or evaluation the same line would say nothing new.

    Args:
        counts: what has been counted before.
        verb: what the log says was done.

    Example:
        >>> skipped = SkipCounter()
        >>> skipped.add(BadSample("a.jpg", "damaged image"))
        >>> dict(skipped), skipped.summary()
        ({'damaged image': 1}, '1 skipped: 1 damaged image')
    """

    def __init__(self, counts: Any = (), verb: str = "skipped") -> None:
        super().__init__(counts)
        self.verb = verb

    def add(self, bad: BadSample) -> None:
        """Counts one and names it in the log."""
        self[bad.reason] += bad.count
        most = _MOST_NAMED[self.verb]
        kind = bad.reason if self.verb != "skipped" else ""
        named = _named.setdefault((self.verb, kind), set())
        name = hash(bad)
        if name in named or len(named) > most:
            return
        named.add(name)
        detail = f" ({bad.detail})" if bad.detail else ""
        logger.warning("%s %s: %s%s", self.verb, spell(bad.location), bad.reason, detail)
        if len(named) > most:
            logger.warning("more than %d %s; further ones are only counted", most, self.verb)

    def summary(self) -> str:
        """One line such as "3 skipped: 2 damaged image, 1 not an image"; empty when none was."""
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.most_common())
        return f"{self.total()} {self.verb}: {reasons}" if reasons else ""


@dataclass
class ImageAccount:
    """What became of the images of a source.

    Attributes:
        found: image files, by their names, in all that was opened.
        used: images that were decoded, and served.
        skipped, left_out, remarks: by reason; see the module. `found` is the sum of `used` and the
            first two once everything that was opened has been read.

    Example:
        >>> account = ImageAccount(found=3, used=2)
        >>> account.skip(BadSample("a.jpg", "damaged image"))
        >>> account.adds_up, account.lines()[0]
        (True, '3 images found = 2 used + 1 skipped + 0 left out')
    """

    found: int = 0
    used: int = 0
    skipped: SkipCounter = field(default_factory=SkipCounter)
    left_out: SkipCounter = field(default_factory=lambda: SkipCounter(verb="left out"))
    remarks: SkipCounter = field(default_factory=lambda: SkipCounter(verb="noted"))

    def open(self, opened: Opened) -> None:
        """Counts what is known of a shard or folder when it is opened."""
        self.found += opened.found
        for counter, entries in (
            (self.skipped, opened.skipped),
            (self.left_out, opened.left_out),
            (self.remarks, opened.remarks),
        ):
            for entry in entries:
                counter.add(entry)

    def skip(self, bad: BadSample) -> None:
        """Counts an image that cannot be used."""
        self.skipped.add(bad)

    def add(self, skipped: Iterable[BadSample], remarks: Iterable[BadSample]) -> None:
        """Counts several that cannot be used, and what is to be said of others."""
        for bad in skipped:
            self.skipped.add(bad)
        for remark in remarks:
            self.remarks.add(remark)

    @property
    def adds_up(self) -> bool:
        """Whether every image that was found is accounted for."""
        return self.found == self.used + self.skipped.total() + self.left_out.total()

    def lines(self) -> list[str]:
        """The sum, and a line for each reason."""
        skipped, left_out = self.skipped.total(), self.left_out.total()
        lines = [
            f"{self.found} images found = {self.used} used + {skipped} skipped + "
            f"{left_out} left out"
        ]
        for counter in (self.skipped, self.left_out, self.remarks):
            lines += [f"{counter.verb} {n}: {reason}" for reason, n in sorted(counter.items())]
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON and checkpoints."""
        return {
            "found": self.found,
            "used": self.used,
            "skipped": dict(self.skipped),
            "left_out": dict(self.left_out),
            "remarks": dict(self.remarks),
        }

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> ImageAccount:
        """Reads what `as_dict` gave."""
        account = cls()
        account.update(counts)
        return account

    def update(self, counts: dict[str, Any]) -> None:
        """Adds what `as_dict` gave."""
        self.found += counts.get("found", 0)
        self.used += counts.get("used", 0)
        for name in ("skipped", "left_out", "remarks"):
            getattr(self, name).update(counts.get(name, {}))


@dataclass
class Accounted:
    """What results of reading images have in common.

    Attributes:
        account: what became of the images.
    """

    account: ImageAccount = field(default_factory=ImageAccount, kw_only=True)

    @property
    def images(self) -> int:
        """How many images are used."""
        return self.account.used

    @property
    def skipped(self) -> SkipCounter:
        """What cannot be used, by reason."""
        return self.account.skipped


class BadRate:
    """Ends the work when too many of the last samples could not be used.

    Args:
        most: the largest share that is borne, over about 10,000 samples and at least 1,000.

    Raises:
        InputError: a share outside 0..1.
    """

    def __init__(self, most: float) -> None:
        if not 0 <= most <= 1:
            raise InputError(f"max_bad_fraction: {most}; accepted: from 0 to 1")
        self.most = most
        self._recent: deque[tuple[int, int]] = deque()  # (samples, bad ones)

    def add(self, samples: int, bad: Sequence[BadSample], *, enough: bool = True) -> None:
        """Counts some more samples.

        Args:
            samples: how many, bad ones included.
            bad: which of them could not be used.
            enough: whether something stood in for each of these.

        Raises:
            InputError: too many were bad, or nothing stood in for them.
        """
        self._recent.append((samples, len(bad)))
        while sum(n for n, _ in self._recent) - self._recent[0][0] >= _RECENT_SAMPLES:
            self._recent.popleft()
        total, n_bad = (sum(column) for column in zip(*self._recent, strict=True))
        if bad and (n_bad > self.most * max(total, _FEWEST_SAMPLES) or not enough):
            raise InputError(
                f"{n_bad} of the last {total} samples cannot be used, more than "
                f"{self.most:.0%}; the last is {bad[-1]}"
            )
