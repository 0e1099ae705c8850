"""What crosses the seam between the operators and their kernels.

`franca_fast.ops` checks and differentiates, the folders beside this file compute; the types below
are what both know. A backend offers an operator by a module of the operator's name whose functions
are those of its protocol; `conformance.py` has mypy hold every such module to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

OPERATORS = (
    "sinkhorn",
    "prototype_scores",
    "weight_norm_scores",
    "clustering_cross_entropy",
    "streamed_clustering",
    "varlen_attention",
    "swiglu",
    "adamw_update",
)

# In order of preference. On a GPU what is measured comes first.
BACKENDS = ("cuda", "cpu", "triton", "torch")


class Scores(NamedTuple):
    """Scores z of N rows against the prototypes of every nested head, stored or streamed.

    `Scores(logits)` holds them. `Scores(features, prototypes, scales)` is what they come from,

        z[n, k] = scales[k] * <features[n], prototypes[k]>

    which operators score again block by block, forward and backward, instead of storing it: the
    extra memory is O(N + K) and not O(N K).

    Attributes:
        values: For each head, the scores [N, K_i]; when streamed, the features [N, C_i].
        prototypes: For each head, [K_i, C_i] of the dtype of the features; empty when stored.
        scales: For each head, [K_i], float32 (float64 for float64 features); empty when stored.

    Example:
        >>> import torch, franca_fast as ff
        >>> head = ff.models.NestedPrototypeHead(32, 64, hidden_dim=16, bottleneck_dim=8)
        >>> scores = head(torch.randn(6, 32), streamed=True)
        >>> scores.streamed, scores.n_rows, scores.columns
        (True, 6, [4, 8, 16, 32, 64])
        >>> potentials = ff.ops.sinkhorn_potentials(scores, temperature=0.05)
    """

    values: Sequence[Tensor]
    prototypes: Sequence[Tensor] = ()
    scales: Sequence[Tensor] = ()

    @classmethod
    def of(cls, given: ScoresLike) -> Scores:
        """What the operators take for scores: also one matrix, or one for each head."""
        if isinstance(given, Scores):
            return given
        return cls((given,) if isinstance(given, Tensor) else tuple(given))

    @property
    def streamed(self) -> bool:
        """Whether the scores are computed whenever they are needed."""
        return len(self.prototypes) > 0

    @property
    def n_rows(self) -> int:
        """Number of rows N."""
        return self.values[0].shape[0]

    @property
    def columns(self) -> list[int]:
        """Number of prototypes K_i of each head."""
        if self.streamed:
            return [v.shape[0] for v in self.prototypes]
        return [z.shape[1] for z in self.values]


ScoresLike: TypeAlias = Tensor | Sequence[Tensor] | Scores


def potential_dtype(scores: Tensor) -> torch.dtype:
    """Dtype of potentials, losses and weights: float64 for float64 scores, float32 for others."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


class ClusteringProblem(NamedTuple):
    """Student rows m that meet teacher rows r = teacher_rows[m, :], checked by the operator.

    Attributes:
        student: Scores s of M rows.
        teacher: Scores z of N rows against as many prototypes, of the same kind.
        prototype_potentials: a [sum K], of all heads one after the other.
        row_potentials: b [H, N].
        student_temperature: t.
        teacher_temperature: T.
        teacher_rows: [M, P] int64.
        weights: w [M].
    """

    student: Scores
    teacher: Scores
    prototype_potentials: Tensor
    row_potentials: Tensor
    student_temperature: float
    teacher_temperature: float
    teacher_rows: Tensor
    weights: Tensor


class AttentionProblem(NamedTuple):
    """Packed sequences: queries, keys and values [tokens, heads, head_dim] in any strides."""

    q: Tensor
    k: Tensor
    v: Tensor
    seqlens: list[int]
    scale: float


class AdamWProblem(NamedTuple):
    """Tensors to update in place, one entry of each list for each, checked by the operator.

    Attributes:
        parameters: p, contiguous, all of one dtype on one device.
        gradients: g, contiguous; only read.
        exp_avgs: m, contiguous.
        exp_avg_sqs: v, contiguous.
        steps: Number of steps before this one, float32 scalars on the device.
        teachers: What follows the updated parameter, contiguous; None for nothing.
        lrs: Learning rates.
        weight_decays: Decoupled weight decays.
        modules: Indices into clip_factors; not read without them.
        clip_factors: Of the gradients of each module, [modules] of the parameters' dtype; or None.
        beta1: Share of m that stays.
        beta2: Share of v that stays.
        eps: Added to the denominator.
        momentum: Share of the teacher that stays.
        finite: Bool scalar on the device; where it is false, nothing is changed.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    steps: Sequence[Tensor]
    teachers: Sequence[Tensor | None]
    lrs: Sequence[float]
    weight_decays: Sequence[float]
    modules: Sequence[int]
    clip_factors: Tensor | None
    beta1: float
    beta2: float
    eps: float
    momentum: float
    finite: Tensor


class SinkhornPasses(Protocol):
    """The passes over scores z that Sinkhorn-Knopp is made of."""

    def column_logsumexp(
        self, scores: Scores, temperature: float, n_valid: int
    ) -> tuple[Tensor, Tensor]:
        """Maximum of z/T over the valid rows and sum of exp(z/T - maximum), both [sum K]."""

    def row_step(
        self,
        scores: Scores,
        temperature: float,
        prototype_potentials: Tensor,
        n_valid: int,
        with_mass: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Row potentials for given prototype potentials and, on request, each prototype's mass.

        Returns:
            [H, N], b[n] = -log sum_k exp(z/T + a[k]); -inf for rows from n_valid on.
            [sum K], the sum over valid rows of exp(z/T + a[k] + b[n]); or None.
        """

    def potentials(
        self, scores: Scores, temperature: float, n_iterations: int, n_valid: int
    ) -> tuple[Tensor, Tensor]:
        """All iterations in one process: potentials of prototypes [sum K] and rows [H, N]."""


class Sinkhorn(SinkhornPasses, Protocol):
    """On stored scores, which can also be assigned."""

    def assignments(
        self, scores: Scores, temperature: float, prototype_potentials: Tensor, n_valid: int
    ) -> list[Tensor]:
        """Softmax over k of z/T + a[k], [N, K] for each head; zero for rows from n_valid on.

        Normalising each row here, instead of adding a stored row potential, makes rows sum to 1
        however large the scores are.
        """


class PrototypeScores(Protocol):
    """Scores multiplied out; no scales means scales of 1."""

    def forward(self, scores: Scores) -> list[Tensor]:
        """scale[k] * <x[n], v[k]>, [N, K] for each head, in the dtype of the features."""

    def backward(self, scores: Scores, gradients: Sequence[Tensor]) -> Scores:
        """Gradients of features, prototypes and scales, given those of the products."""


class WeightNormScores(Protocol):
    """Scores of N features x [N, C] and K prototypes w[k] = g[k] v[k] / |v[k]|, v [K, C], g [K].

    `given` is w in the dtype of x, as `normalized` gave it; None where v has that dtype itself.
    """

    def normalized(self, v: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        """W [K, C], rounded once to a dtype."""

    def gradients(
        self, dprototypes: Tensor, dscales: Tensor | None, v: Tensor, g: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of v and g, given those of w; or those of v alone and of the scales g/|v|."""

    def forward(self, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None) -> Tensor:
        """<x[n], w[k]>, [N, K] in the dtype of the features."""

    def backward(
        self, grad: Tensor, features: Tensor, v: Tensor, g: Tensor, given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of features, v and g, given those of the scores."""


class LossPasses(Protocol):
    """Cross-entropy of student scores against teacher assignments, see `ops`."""

    def forward(self, problem: ClusteringProblem) -> tuple[Tensor, Tensor]:
        """Loss [H] and log-sum-exp of the student rows [H, M]."""

    def backward(self, problem: ClusteringProblem, grad_loss: Tensor, lse: Tensor) -> Scores:
        """Gradients of the student's scores, in their form."""


class ClusteringCrossEntropy(LossPasses, Protocol):
    """On stored scores, over which the gradient can be written."""

    def backward(
        self,
        problem: ClusteringProblem,
        grad_loss: Tensor,
        lse: Tensor,
        out: Sequence[Tensor] | None = None,
    ) -> Scores:
        """Gradient of the student's scores: grad * w/t * (P softmax(s/t) - q), in their dtype.

        `out` is where to write it, of their shapes and with adjacent columns; it may be the scores
        themselves, which are then lost. By default new memory is taken.
        """


class StreamedClustering(SinkhornPasses, LossPasses, Protocol):
    """Passes and loss on streamed scores."""


class VarlenAttention(Protocol):
    """Attention within each packed sequence."""

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        """Output [tokens, heads, head_dim] and the softmax's log-sum-exp [tokens, heads]."""

    def backward(
        self,
        problem: AttentionProblem,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        gradients: Sequence[Tensor],
    ) -> None:
        """Writes the gradients of q, k and v, [tokens, heads, head_dim] in any strides."""


class SwiGLU(Protocol):
    """silu(g) v of rows h = [g, v], [..., 2 w] in any strides."""

    def forward(self, h: Tensor) -> Tensor:
        """[..., w], contiguous."""

    def backward(self, grad: Tensor, h: Tensor) -> Tensor:
        """Gradient of h, [..., 2 w], contiguous; given that of the result, in any strides."""


class AdamWUpdate(Protocol):
    """One step of AdamW and of the teacher's moving average."""

    def update(self, problem: AdamWProblem) -> None:
        """Changes parameters, moments, steps and teachers in place, or nothing at all."""
