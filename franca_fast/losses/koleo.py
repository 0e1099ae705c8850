"""The KoLeo regulariser: spreads the features of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from franca_fast.errors import InputError


class KoLeoLoss(nn.Module):
    """-mean_n log(|x[n] - x[nearest neighbour of n]| + eps) of L2-normalised features.

    The Kozachenko-Leonenko estimator of differential entropy (arXiv 1806.03198), as in DINOv2.
    Computed in float32 at least, whatever the autocast dtype.

    Example:
        >>> import torch, franca_fast as ff
        >>> loss = ff.losses.KoLeoLoss()(torch.randn(8, 64))
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
        """Scalar loss of features [n, d], the CLS tokens of one crop of n images.

        With a group of ranks with n images each, neighbours are sought among the images of all;
        the mean of the ranks' losses, and of their gradients, is that of one process with all
        images. A single feature has no neighbour and gives 0.
        """
        if features.dim() != 2:
            raise InputError(f"features: shape {tuple(features.shape)}; accepted: [n, d]")
        with torch.autocast(features.device.type, enabled=False):
            x = features if features.dtype == torch.float64 else features.float()
            x = F.normalize(x, dim=-1, eps=self.eps)
            others, first = x, 0
            if group is not None:
                others, first = _Gather.apply(x, group), dist.get_rank(group) * x.shape[0]
            if others.shape[0] < 2:
                return x.sum() * 0.0
            with torch.no_grad():
                itself = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
                similarity = (x @ others.t()).scatter_(1, itself + first, -1.0)
                neighbour = similarity.argmax(dim=1)
            distance = F.pairwise_distance(x, others[neighbour], p=2.0, eps=self.eps)
            return -(distance + self.eps).log().mean()


class _Gather(torch.autograd.Function):
    """Rows of all ranks, [ranks * n, d]; differentiable in every rank's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(rows, x.contiguous(), group=group)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None
