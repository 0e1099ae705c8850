"""The KoLeo regulariser: spreads the features of a batch."""

from __future__ import annotations

import torch
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

    def forward(self, features: Tensor) -> Tensor:
        """Scalar loss of features [n, d], the CLS tokens of one crop of n images.

        A single feature has no neighbour and gives 0.
        """
        if features.dim() != 2:
            raise InputError(f"features: shape {tuple(features.shape)}; accepted: [n, d]")
        with torch.autocast(features.device.type, enabled=False):
            x = features if features.dtype == torch.float64 else features.float()
            if x.shape[0] < 2:
                return x.sum() * 0.0
            x = F.normalize(x, dim=-1, eps=self.eps)
            with torch.no_grad():
                similarity = (x @ x.t()).fill_diagonal_(-1.0)
                neighbour = similarity.argmax(dim=1)
            distance = F.pairwise_distance(x, x[neighbour], p=2.0, eps=self.eps)
            return -(distance + self.eps).log().mean()
