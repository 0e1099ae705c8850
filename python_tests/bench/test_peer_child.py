"""Our side of the steps beside peers: the same batch for each turn."""

from __future__ import annotations

import torch

from bench.gpu.steps import TINY, random_batch
from bench.peer_child import SETTINGS, Loader, ours, upper_bound
from franca_fast.config import load_config


class Turns:
    """Gives two batches."""

    def batches(self, batch, **about):
        self.about, self.given = about, 0
        for _ in range(2):
            self.given += 1
            yield batch


def test_ours_trains_once_for_each_turn_and_the_bound_covers_the_masked_patches():
    config = load_config(None, [*SETTINGS, *TINY])
    batch = random_batch(config, torch.device("cpu"))
    turns = Turns()
    ours(turns, config, batch, "fp32")
    assert turns.given == 2 and turns.about["version"]
    assert len(batch.mask_indices) <= upper_bound(config, batch) <= batch.masks.numel()


def test_a_peer_sees_a_loader_with_a_length_that_gives_the_batch_at_its_turn():
    turns = Turns()
    loader = Loader(turns, "batch", version="1")
    assert len(loader) > 100
    assert list(loader) == ["batch", "batch"] and turns.about == {"version": "1"}
