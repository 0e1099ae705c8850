"""Scores of how much an image looks like those of the known classes; higher is more so.

All follow OpenOOD v1.5, and all are computed in float64 in blocks of rows, on the features' device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from franca_fast.errors import InputError
from franca_fast.evaluation.image.cosine import CosineMemory

Score = Callable[[Tensor], Tensor]  # features [t, d] -> float64 [t]

_NUMBERS_AT_ONCE = 2**24  # rows x width, or rows x classes


class NearestDistance:
    """Minus the squared distance to the K-th nearest known image, of normalised features.

    Sun et al. 2022. That OpenOOD adds 1e-10 to every entry after normalising cancels in
    differences.

    Args:
        known: features of known images [n, d].
        ks: values of K; one above n means n.

    Example:
        >>> NearestDistance(torch.eye(2), (2,))(torch.tensor([[1.0, 0.0]]))
        {2: tensor([-2.], dtype=torch.float64)}
    """

    def __init__(self, known: Tensor, ks: Sequence[int]) -> None:
        self._memory, self._n = CosineMemory(known), len(known)
        self._ks = tuple(dict.fromkeys(ks))

    def __call__(self, features: Tensor) -> dict[int, Tensor]:
        """Scores at each K, float64 [t] each."""
        largest = min(max(self._ks), self._n)
        parts: dict[int, list[Tensor]] = {k: [] for k in self._ks}
        for similarities, rest in self._memory.compared(features):
            nearest = similarities.topk(largest).values.double() + rest
            for k in self._ks:
                # 2 - 2 cos; rounding makes it negative for equal features.
                parts[k].append(-(2 - 2 * nearest[:, min(k, self._n) - 1]).clamp(min=0))
        return {k: torch.cat(scores) for k, scores in parts.items()}


class Mahalanobis:
    """Minus the squared Mahalanobis distance to the nearest class (Lee et al. 2018).

    One covariance is shared by all classes: that of all rows about the means of their classes,
    divided by n. Its inverse is the pseudo-inverse, so that directions without any variance, which
    there are where rows are fewer than entries, count for nothing.

    Args:
        known: features of known images [n, d], as they are.
        labels: int64 [n], from 0 to C - 1, each of which occurs.

    Attributes:
        means: float64 [C, d].
        precision: float64 [d, d].
        rank: of the covariance.

    Example:
        >>> known = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> Mahalanobis(known, torch.tensor([0, 0, 1, 1]))(torch.tensor([[2.0], [11.0]]))
        tensor([-4., -1.], dtype=torch.float64)
    """

    def __init__(self, known: Tensor, labels: Tensor) -> None:
        n, width = known.shape
        counts = labels.bincount()
        sums = known.new_zeros(len(counts), width, dtype=torch.float64)
        blocks = list(zip(known.split(_rows(width)), labels.split(_rows(width)), strict=True))
        for rows, its_labels in blocks:
            sums.index_add_(0, its_labels, rows.double())
        self.means = sums / counts[:, None]
        scatter = known.new_zeros(width, width, dtype=torch.float64)
        for rows, its_labels in blocks:
            centred = rows.double() - self.means[its_labels]
            scatter.addmm_(centred.T, centred)
        self.precision = torch.linalg.pinv(scatter / n, hermitian=True)
        self.rank = int(torch.linalg.matrix_rank(scatter / n, hermitian=True))
        # About the middle of the classes, where products lose least.
        self._origin = self.means.mean(0)
        self._centred = self.means - self._origin
        self._mapped = self._centred @ self.precision
        self._squares = (self._mapped * self._centred).sum(1)

    def __call__(self, features: Tensor) -> Tensor:
        """Scores, float64 [t]."""
        scores = []
        for rows in features.split(_rows(max(self.means.shape))):
            x = rows.double() - self._origin
            own = ((x @ self.precision) * x).sum(1)
            crossed = torch.addmm(self._squares, x, self._mapped.T, alpha=-2).amin(1)
            scores.append(-(own + crossed).clamp(min=0))
        return torch.cat(scores)


class LinearClassifier:
    """A linear classifier of features, and the scores that only it is needed for.

    Args:
        weight: [C, d].
        bias: [C].

    Raises:
        InputError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> LinearClassifier(torch.eye(2), torch.zeros(2)).largest_probability(torch.zeros(1, 2))
        tensor([0.5000], dtype=torch.float64)
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        if weight.dim() != 2 or len(weight) < 2 or bias.shape != weight.shape[:1]:
            raise InputError(
                f"classifier: weight {tuple(weight.shape)}, bias {tuple(bias.shape)}; accepted: "
                "[C, d] and [C], of two classes or more"
            )
        self.weight, self.bias = weight.double(), bias.double()

    def logits(self, features: Tensor) -> Tensor:
        """float64 [t, C]."""
        return F.linear(features.double(), self.weight, self.bias)

    def blocks(self, features: Tensor) -> Sequence[Tensor]:
        """Features in blocks whose logits can be held."""
        return features.split(_rows(max(self.weight.shape)))

    def largest_probability(self, features: Tensor) -> Tensor:
        """The largest softmax probability (Hendrycks and Gimpel 2017), float64 [t]."""
        return torch.cat([self.logits(rows).softmax(1).amax(1) for rows in self.blocks(features)])

    def predicted(self, features: Tensor) -> Tensor:
        """int64 [t], the class of the largest logit."""
        return torch.cat([self.logits(rows).argmax(1) for rows in self.blocks(features)])


def classifier_origin(classifier: LinearClassifier) -> Tensor:
    """The shortest feature vector with logits of zero, as nearly as there is one: -pinv(W) b.

    Singular values below max(C, d) roundings of float32 of the largest one count as zero: NumPy's
    and SciPy's rule for the rank of a float32 matrix.

    Args:
        classifier: with W [C, d] and b [C].

    Returns:
        float64 [d].

    Example:
        >>> classifier_origin(LinearClassifier(2 * torch.eye(2), torch.tensor([2.0, 4.0])))
        tensor([-1., -2.], dtype=torch.float64)
    """
    rounding = max(classifier.weight.shape) * torch.finfo(torch.float32).eps
    return -torch.linalg.pinv(classifier.weight, rtol=rounding) @ classifier.bias


class VirtualLogit:
    """ViM: the energy of the logits less a scaled norm of what lies outside the principal space.

    Wang et al. 2022: with the origin u = -pinv(W) b, the principal space is spanned by the first
    `dim` eigenvectors of the second moment of known features about u; r is the norm of the rest,
    alpha = mean largest logit / mean r of known images, and the score is
    logsumexp(logits) - alpha r. Rows of the W of a softmax regression add up to zero, but for
    rounding. Singular values as small as the rounding of float32 are therefore left out of pinv;
    OpenOOD inverts them, which adds noise to u (see `classifier_origin`).

    Args:
        known: features of known images [n, d], as they are.
        classifier: a linear classifier of them.
        dim: of the principal space, from 0 to d - 1.
        origin: u where it is known.

    Attributes:
        origin: u, float64 [d].
        alpha: see above.

    Raises:
        InputError: `dim` out of its range.

    Example:
        >>> classifier = LinearClassifier(torch.eye(2, 3), torch.zeros(2))
        >>> known = torch.tensor([[2.0, 0.0, 0.1], [0.0, 1.0, 0.1]])
        >>> scores = VirtualLogit(known, classifier, 2)(torch.tensor([[2.0, 0, 0], [2.0, 0, 5]]))
        >>> bool(scores[0] > scores[1])
        True
    """

    def __init__(
        self, known: Tensor, classifier: LinearClassifier, dim: int, origin: Tensor | None = None
    ) -> None:
        width = known.shape[1]
        if not 0 <= dim < width:
            raise InputError(f"vim_dim: {dim}; accepted: 0 to {width - 1}, below the width")
        self._classifier = classifier
        self.origin = classifier_origin(classifier) if origin is None else origin.double()
        moment = known.new_zeros(width, width, dtype=torch.float64)
        for rows in known.split(_rows(width)):
            moved = rows.double() - self.origin
            moment.addmm_(moved.T, moved)
        # Ascending eigenvalues: the last `dim` vectors span the principal space.
        self._outside = torch.linalg.eigh(moment / len(known)).eigenvectors[:, : width - dim]
        largest, norm = 0.0, 0.0
        for rows in classifier.blocks(known):
            largest += float(classifier.logits(rows).amax(1).sum())
            norm += float(self._norm(rows).sum())
        if not norm > 0:
            raise InputError(
                f"vim_dim: {dim}, and no known image has anything outside; accepted: a smaller one"
            )
        self.alpha = largest / norm

    def _norm(self, features: Tensor) -> Tensor:
        return ((features.double() - self.origin) @ self._outside).norm(dim=1)

    def __call__(self, features: Tensor) -> Tensor:
        """Scores, float64 [t]."""
        return torch.cat(
            [
                self._classifier.logits(rows).logsumexp(1) - self.alpha * self._norm(rows)
                for rows in self._classifier.blocks(features)
            ]
        )


def _rows(width: int) -> int:
    return max(1, _NUMBERS_AT_ONCE // width)
