from __future__ import annotations

import logging
import random

import pytest

from franca_fast.data import SkipCounter
from franca_fast.data.accounting import (
    HIDDEN,
    SECOND_IMAGE,
    BadRate,
    BadSample,
    ImageAccount,
    Notes,
    Opened,
)
from franca_fast.errors import InputError


def test_skips_are_counted_by_reason_and_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    skipped = SkipCounter()
    with caplog.at_level(logging.WARNING):
        skipped.add(BadSample("shard.tar:a.jpg", "damaged image", "it ends early"))
        skipped.add(BadSample("b.jpg", "damaged image"))
        skipped.add(BadSample("c.txt", "not an image"))
    assert skipped == {"damaged image": 2, "not an image": 1}
    assert skipped.summary() == "3 skipped: 2 damaged image, 1 not an image"
    assert "shard.tar:a.jpg" in caplog.text and "it ends early" in caplog.text
    assert SkipCounter().summary() == ""


def test_the_rate_of_bad_samples_is_that_of_the_last_ones() -> None:
    bad = [BadSample("a.png", "not an image")]
    rate = BadRate(0.01)
    for _ in range(300):  # one in a hundred, for ever
        rate.add(100, bad)
    with pytest.raises(InputError, match=r"10\d of the last \d+ samples .*'a.png' \(not"):
        for _ in range(9):
            rate.add(100, bad * 2)
    with pytest.raises(InputError, match="1 of the last 4 samples"):
        BadRate(0.5).add(4, bad, enough=False)
    BadRate(0.01).add(4, bad * 4)  # so few say nothing yet
    with pytest.raises(InputError, match="max_bad_fraction: -1; accepted: from 0 to 1"):
        BadRate(-1)


@pytest.mark.parametrize("verb", ["left out", "noted"])
def test_of_what_may_concern_every_sample_the_log_names_the_first(
    verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    counter = SkipCounter(verb=verb)
    with caplog.at_level(logging.WARNING):
        for i in range(100):
            counter.add(BadSample(f"{i}.png", f"{verb} for this test"))
    assert counter.total() == 100
    assert len(caplog.records) == 22 and "further ones" in caplog.text


def opened(draw: random.Random) -> Opened:
    """What might be known of a shard with some images."""
    entries = [
        tuple(
            BadSample(f"{draw.random()}", draw.choice(reasons), count=draw.randrange(1, 4))
            for _ in range(draw.randrange(3))
        )
        for reasons in (["damaged shard"], [HIDDEN, SECOND_IMAGE], ["a remark"])
    ]
    known = sum(entry.count for part in entries[:2] for entry in part)
    return Opened(known + draw.randrange(5), *entries)


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_holds_when_all_that_was_opened_has_been_read(seed: int) -> None:
    draw = random.Random(seed)
    account = ImageAccount()
    for _ in range(draw.randrange(1, 5)):
        account.open(opened(draw))
    while not account.adds_up:
        assert account.found > account.used
        if draw.random() < 0.3:
            account.skip(BadSample("x", "damaged image"))
        else:
            account.used += 1
    again = ImageAccount.from_dict(account.as_dict())
    assert again == account and again.lines() == account.lines()
    assert account.lines()[0].startswith(f"{account.found} images found = {account.used} used")


def test_names_are_kept_of_the_first_and_all_are_counted() -> None:
    notes = Notes()
    for i in range(30):
        notes.add(HIDDEN, f"{i}.png")
    listed = list(notes.listed("s.tar"))
    assert [entry.location for entry in listed[:2]] == ["s.tar:0.png", "s.tar:1.png"]
    assert sum(entry.count for entry in listed) == 30 and listed[-1].detail == "10 more"
