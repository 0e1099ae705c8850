"""The works beside peers, of ours alone: the same results in place and not."""

from __future__ import annotations

import pytest
import torch

from bench import peer_operators
from bench.peer_operators import Work, image_loss, measure, patch_loss, sinkhorn, works

WIDTHS = (3, 8)


@pytest.fixture(autouse=True)
def without_peers(monkeypatch):
    monkeypatch.setattr(peer_operators, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    "make",
    [lambda: image_loss("fp32", WIDTHS, 3, 2), lambda: patch_loss("fp32", WIDTHS, 8)],
    ids=["image", "patch"],
)
def test_gradients_in_place_are_the_same(make):
    torch.manual_seed(0)
    variants = make()
    # In place the logits are gone afterwards.
    apart, in_place = variants["ours"](), variants["ours in place"]()
    assert all(a.abs().sum() > 0 for a in apart)
    torch.testing.assert_close(in_place, apart)


def test_sinkhorn_and_measure():
    found = measure(Work("some", "birder", lambda: sinkhorn(4, WIDTHS)), seconds=0.0)
    assert {name: len(times) for name, times in found["seconds"].items()} == {
        "ours potentials": 3,
        "ours assignments": 3,
    }


def test_names_are_unique():
    names = [work.name for work in works()]
    assert len(names) == len(set(names))
