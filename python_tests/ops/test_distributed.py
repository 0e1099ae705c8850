"""Rows spread over ranks, unequally, give what one process gives with all rows."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import franca_fast as ff
from python_tests.helpers import run_ranks

COLUMNS = (5, 40, 130)
# Rows of each rank; one rank has none, as a rank without masked patches would.
SPREADS = {2: [7, 3], 3: [4, 0, 9]}


def logits(n_rows):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n_rows, k, generator=generator) for k in COLUMNS]


def streamed_from(z):
    """The same scores as products: z @ I^T."""
    scales = [torch.ones(k) for k in COLUMNS]
    return ff.ops.Scores(z, [torch.eye(k) for k in COLUMNS], scales)


def work(rank, spread, folder):
    start = sum(spread[:rank])
    own = [z[start : start + spread[rank]] for z in logits(sum(spread))]
    group = dist.group.WORLD
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as collective:
        stored = ff.ops.sinkhorn_potentials(own, 0.05, group=group)
        n_collectives = collective.call_count
    streamed = ff.ops.sinkhorn_potentials(streamed_from(own), 0.05, group=group)
    assignments = ff.ops.sinkhorn_knopp(own, 0.05, group=group)
    center_loss = ff.losses.NestedDINOLoss(COLUMNS, centering="centering")
    mean = center_loss.targets(own, 0.05, group=group).mean_scores
    result = (stored, streamed, assignments, mean, n_collectives)
    torch.save(result, folder / f"rank{rank}.pt")


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process(world_size, tmp_path: Path):
    spread = SPREADS[world_size]
    run_ranks(world_size, tmp_path, work, spread, tmp_path)
    results = [torch.load(tmp_path / f"rank{r}.pt", weights_only=False) for r in range(world_size)]
    # One MAX and three SUM all-reduces for three iterations, whatever the number of heads.
    assert [result[4] for result in results] == [4] * world_size
    everything = logits(sum(spread))
    expected = ff.ops.sinkhorn_potentials(everything, 0.05)
    expected_assignments = ff.ops.sinkhorn_knopp(everything, 0.05)
    for head in range(len(COLUMNS)):
        for kind in (0, 1):
            row = torch.cat([result[kind].row[head] for result in results])
            torch.testing.assert_close(row, expected.row[head], rtol=1e-5, atol=1e-4)
            for result in results:
                torch.testing.assert_close(
                    result[kind].prototype[head], expected.prototype[head], rtol=1e-5, atol=1e-4
                )
        q = torch.cat([result[2][head] for result in results])
        torch.testing.assert_close(q, expected_assignments[head], rtol=1e-4, atol=1e-6)
        for result in results:
            torch.testing.assert_close(result[3][head], everything[head].mean(dim=0))
