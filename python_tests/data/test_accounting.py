from __future__ import annotations

import logging

import pytest

from franca_fast.data import SkipCounter
from franca_fast.data.accounting import BadRate, BadSample
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
