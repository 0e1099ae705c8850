"""Scores on their way through the dispatcher."""

from __future__ import annotations

import pytest
import torch

from franca_fast.ops import Scores
from franca_fast.ops._library import packed, unpacked

STORED = Scores([torch.zeros(3, 5), torch.zeros(3, 7)])
STREAMED = Scores(
    [torch.zeros(3, 2), torch.zeros(3, 4)],
    [torch.zeros(5, 2), torch.zeros(7, 4)],
    [torch.ones(5), torch.ones(7)],
)


@pytest.mark.parametrize("scores", [STORED, STREAMED], ids=["stored", "streamed"])
def test_scores_come_out_as_they_went_in(scores):
    again = unpacked(packed(scores), 2)
    for name in ("values", "prototypes", "scales"):
        ours, theirs = getattr(again, name), getattr(scores, name)
        assert len(ours) == len(theirs)
        assert all(one is other for one, other in zip(ours, theirs, strict=True))
