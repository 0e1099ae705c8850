"""What the teacher's assignments look like: the first place where a collapse shows."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.losses import ClusteringTargets
from franca_fast.ops import FactoredScores

# Enough rows for a stable figure; all masked patches of a large batch would cost too much.
_MAX_ROWS = 512
_ROWS_AT_ONCE = 64


@torch.no_grad()
def assignment_statistics(targets: ClusteringTargets) -> dict[str, Tensor]:
    """Entropy of the assignments and number of prototypes in use, for each nested head.

    Args:
        targets: assignments Q = exp(z/T + a + b) of N rows; the first 512 rows are looked at.

    Returns:
        "entropy": mean over the rows of -sum_k Q log Q in nats, [H] (log K_i when uniform, 0 when
        certain); "used_prototypes": prototypes that are the first choice of some row, [H]. On the
        device, not synchronised.
    """
    entropies, used = [], []
    scores = targets.logits
    if isinstance(scores, FactoredScores):
        scores = scores.stored(_MAX_ROWS)
    heads = zip(scores, targets.potentials.prototype, targets.potentials.row, strict=True)
    for logits, prototype, row in heads:
        totals, choices = [], []
        starts = range(0, min(logits.shape[0], _MAX_ROWS), _ROWS_AT_ONCE)
        for start in starts:
            rows = slice(start, min(start + _ROWS_AT_ONCE, _MAX_ROWS))
            log_q = logits[rows].float() / targets.temperature + prototype + row[rows].unsqueeze(1)
            totals.append(-(log_q.exp() * log_q).sum(dim=1))
            choices.append(log_q.argmax(dim=1))
        if not totals:
            entropies.append(prototype.new_zeros(()))
            used.append(prototype.new_zeros(()))
            continue
        entropies.append(torch.cat(totals).mean())
        used.append((torch.cat(choices).sort().values.diff() != 0).sum() + 1.0)
    return {"entropy": torch.stack(entropies), "used_prototypes": torch.stack(used)}
