"""The nested prototype head: one MLP and one set of prototypes for each nested dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.ops import (
    Scores,
    normalized_prototypes,
    streamed_prototypes,
    weight_norm_scores,
)

PROJECTIONS = ("slice", "full")


def default_nesting_dims(dim: int) -> tuple[int, ...]:
    """Franca's nested dimensions: d/16, d/8, d/4, d/2, d."""
    if dim % 16:
        raise InputError(f"nesting_dims: None with in_dim {dim}; accepted: a multiple of 16")
    return tuple(dim // factor for factor in (16, 8, 4, 2, 1))


class WeightNormPrototypes(nn.Module):
    """Prototypes w[k] = g[k] * v[k] / |v[k]|, stored as weight_g [K, 1] and weight_v [K, C]."""

    def __init__(self, bottleneck_dim: int, n_prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(n_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(n_prototypes, bottleneck_dim))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    @overload
    def forward(self, features: Tensor, streamed: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, features: Tensor, streamed: Literal[True]
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def forward(
        self, features: Tensor, streamed: bool = False
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Scores [N, K] of features [N, C], <features[n], w[k]>, under autocast in its dtype.

        Or, streamed, what they come from: features, prototypes [K, C] of their dtype, and scales
        [K] in float32 at least: v and g / |v|, or w and 1 where v has another dtype.
        """
        device = features.device.type
        if torch.is_autocast_enabled(device):
            features = features.to(torch.get_autocast_dtype(device))
        v, g = self.weight_v, self.weight_g.squeeze(1)
        normalized = self._normalized(features.dtype)
        if streamed:
            return features, *streamed_prototypes(v, g, normalized)
        return weight_norm_scores(features, v, g, normalized=normalized)

    def _normalized(self, dtype: torch.dtype) -> Tensor | None:
        """The normalised prototypes in another dtype than that of v, for products in it."""
        v, g = self.weight_v, self.weight_g
        if v.dtype == dtype:
            return None
        if _shared is None or torch.compiler.is_compiling():
            return normalized_prototypes(v, g.squeeze(1), dtype)
        state = (dtype, v.data_ptr(), v._version, g.data_ptr(), g._version)
        if self not in _shared or _shared[self][0] != state:
            _shared[self] = state, normalized_prototypes(v, g.squeeze(1), dtype)
        return _shared[self][1]


_shared: dict[WeightNormPrototypes, tuple[tuple[object, ...], Tensor]] | None = None


@contextmanager
def shared_prototypes() -> Iterator[None]:
    """Within it, what heads make of their prototypes for 16-bit products they make once.

    For several passes with the same weights, such as the micro-batches of a step. Weights must not
    change before it ends: it notices what autograd does, but neither writes to `parameter.data` nor
    the steps of fused optimizers, which is why nothing is kept beyond it.
    """
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


class NestedPrototypeHead(nn.Module):
    """Scores of features against prototypes, for each nested dimension (arXiv 2507.14137).

    For nested dimension m_i of the features z: projection, an MLP to the bottleneck, and
    K_i = out_dim * m_i / in_dim weight-normalised prototypes. Parameters carry the names of the
    released files.

    Args:
        in_dim: Width d of the features.
        out_dim: Number of prototypes at full width.
        nesting_dims: Nested dimensions m_i, each at most d. Default: d/16, d/8, d/4, d/2, d. One
            dimension, (d,), is DINOv2's head.
        n_layers: Linear layers of the MLP.
        hidden_dim: Width of its hidden layers.
        bottleneck_dim: Width of its output, C.
        projection: "slice" projects z[:, :m_i] (the paper, and later released files); "full"
            projects all of z to m_i (the files of July 2025).
        normalize: DINOv2's bottleneck instead of Franca's: no GELU after the last layer, and L2
            normalisation.

    Attributes:
        config: The arguments, JSON-able; `NestedPrototypeHead(**config)` builds the same head.
        nesting_dims: The nested dimensions.
        out_dims: Number of prototypes of each.

    Example:
        >>> import torch, franca_fast as ff
        >>> head = ff.models.NestedPrototypeHead(64, 512, hidden_dim=96, bottleneck_dim=24)
        >>> [tuple(scores.shape) for scores in head(torch.randn(6, 64))]
        [(6, 32), (6, 64), (6, 128), (6, 256), (6, 512)]
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        nesting_dims: Sequence[int] | None = None,
        n_layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        projection: str = "slice",
        normalize: bool = False,
    ) -> None:
        config: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__")
        }
        super().__init__()
        if projection not in PROJECTIONS:
            raise InputError(f"projection: {projection!r}; accepted: {' or '.join(PROJECTIONS)}")
        dims = tuple(nesting_dims) if nesting_dims is not None else default_nesting_dims(in_dim)
        if not dims or min(dims) < 1 or max(dims) > in_dim:
            raise InputError(f"nesting_dims: {dims}; accepted: dimensions from 1 to {in_dim}")
        if any(out_dim * m % in_dim or out_dim * m < in_dim for m in dims):
            raise InputError(
                f"out_dim: {out_dim} with in_dim {in_dim} and nesting_dims {dims}; "
                f"accepted: out_dim * m / in_dim a positive integer for every m"
            )
        if n_layers < 1:
            raise InputError(f"n_layers: {n_layers}; accepted: an integer >= 1")
        self.config = {**config, "nesting_dims": list(dims)}
        self.nesting_dims = dims
        self.out_dims = tuple(out_dim * m // in_dim for m in dims)
        self.projection, self.normalize = projection, normalize
        self.matryoshka_projections = nn.ModuleList(
            nn.Linear(m if projection == "slice" else in_dim, m) for m in dims
        )
        widths = [hidden_dim] * (n_layers - 1) + [bottleneck_dim]
        self.mlps = nn.ModuleList(_mlp(m, widths, last_gelu=not normalize) for m in dims)
        self.last_layers = nn.ModuleList(
            WeightNormPrototypes(bottleneck_dim, k) for k in self.out_dims
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def bottlenecks(self, features: Tensor) -> list[Tensor]:
        """Bottleneck features of each nested dimension: [N, d] -> list of [N, C]."""
        outputs = []
        for m, project, mlp in zip(
            self.nesting_dims, self.matryoshka_projections, self.mlps, strict=True
        ):
            x = mlp(project(features[..., :m] if self.projection == "slice" else features))
            outputs.append(_normalized(x) if self.normalize else x)
        return outputs

    @overload
    def forward(self, features: Tensor, streamed: Literal[False] = False) -> tuple[Tensor, ...]: ...
    @overload
    def forward(self, features: Tensor, streamed: Literal[True]) -> Scores: ...

    def forward(self, features: Tensor, streamed: bool = False) -> tuple[Tensor, ...] | Scores:
        """Scores of each nested dimension.

        Args:
            features: [N, d].
            streamed: Give what the scores come from instead, for losses that never store them.

        Returns:
            A tuple of [N, K_i], or streamed `Scores`.
        """
        # Each set of prototypes is asked on its own, so that an engine which spreads them over
        # processes has the gradient of one set at a time.
        pairs = list(zip(self.last_layers, self.bottlenecks(features), strict=True))
        if not streamed:
            return tuple(layer(x) for layer, x in pairs)
        return Scores(*zip(*(layer(x, streamed=True) for layer, x in pairs), strict=True))


def _normalized(x: Tensor) -> Tensor:
    # In float32: the squares of small features underflow in float16, and their gradient is nan.
    return F.normalize(x.float(), dim=-1, eps=1e-6).to(x.dtype)


def _mlp(in_dim: int, widths: list[int], *, last_gelu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(in_dim, width), nn.GELU()]
        in_dim = width
    return nn.Sequential(*(layers if last_gelu else layers[:-1]))
