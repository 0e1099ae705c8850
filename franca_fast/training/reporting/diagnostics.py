"""What the teacher's assignments look like: the first place where a collapse shows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from franca_fast.ops import ClusteringTargets, prototype_scores

# Enough rows of each rank for a stable figure; all masked patches of a large batch would cost too
# much.
_MAX_ROWS = 512
_ROWS_AT_ONCE = 64


@torch.no_grad()
def assignment_statistics(
    targets: ClusteringTargets, group: dist.ProcessGroup | None = None
) -> dict[str, Tensor]:
    """Entropy of the assignments and number of prototypes in use, for each nested head.

    Args:
        targets: assignments Q = exp(z/T + a + b) of N rows; the first 512 rows are looked at.
        group: of ranks; the rows of all of them count.

    Returns:
        "entropy": mean over the rows of -sum_k Q log Q in nats, [H] (log K_i when uniform, 0 when
        certain); "used_prototypes": prototypes that are the first choice of some row, [H]. On the
        device, not synchronised.
    """
    values, prototypes, scales = targets.scores
    scores = tuple(z[:_MAX_ROWS] for z in values)
    if targets.scores.streamed:
        scores = prototype_scores(scores, prototypes, scales=scales)
    heads = zip(scores, targets.potentials.prototype, targets.potentials.row, strict=True)
    sums, counts = zip(*(_sums(*head, targets.temperature) for head in heads), strict=True)
    rows = torch.full((1,), scores[0].shape[0], device=sums[0].device)
    buffer = torch.cat([torch.stack(sums), rows, *counts]).float()
    if group is not None:
        dist.all_reduce(buffer, group=group)
    n_heads = len(sums)
    used = buffer[n_heads + 1 :].split([len(count) for count in counts])
    return {
        "entropy": buffer[:n_heads] / buffer[n_heads].clamp(min=1.0),
        "used_prototypes": torch.stack([(count > 0).sum() for count in used]).float(),
    }


def _sums(z: Tensor, a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sum of the rows' entropies, and which prototypes some row chooses first, 1 or 0, [K]."""
    entropy = a.new_zeros(())
    chosen = torch.zeros_like(a)
    n_rows = z.shape[0]
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, n_rows))
        log_q = z[rows].float() / temperature + a + b[rows].unsqueeze(1)
        entropy -= (log_q.exp() * log_q).sum()
        chosen.index_fill_(0, log_q.argmax(dim=1), 1.0)
    return entropy, chosen
