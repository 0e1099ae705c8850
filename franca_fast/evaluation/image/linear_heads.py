"""Linear classifiers that share an input, trained at once by stochastic gradient descent.

With logits z = W x + b, the gradient of the cross entropy is (softmax(z) - onehot) x^T, so that
no graph is kept and no gradient: each step is one product for the logits of all heads, and one
that adds their gradients to the momentum in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from franca_fast.data.randomness import Purpose, derived_seed
from franca_fast.evaluation.image.block_features import BlockFeatures, InputKind

_INITIAL_STD = 0.01


class LinearHeads:
    """h classifiers with C classes on inputs of one width, which differ in their learning rate.

    Each is trained as it would be alone: the mean cross entropy over the batch, SGD with momentum
    as `torch.optim.SGD`, no weight decay. What happens to one, an overflow for instance, does
    nothing to the others.

    Args:
        width: D of the input.
        n_classes: C.
        learning_rates: of the h heads.
        seed: of the initial weights, N(0, 0.01); biases begin at 0.
        device: where the heads are.
        momentum: of SGD.
        dtype: of the weights.

    Attributes:
        weight: [h C, D], head by head.
        bias: [h C].
        rates: [h].
        n_not_finite: int64 [h], steps in which a head's loss was not finite.

    Example:
        >>> heads = LinearHeads(2, 2, [0.1, 1.0], seed=0)
        >>> x, labels = torch.eye(2), torch.tensor([0, 1])
        >>> losses = [heads.step(x, labels, 1.0) for _ in range(20)]
        >>> bool((losses[-1] < losses[0]).all()), heads.ranks(x, labels).tolist()
        (True, [[0, 0], [0, 0]])
    """

    def __init__(
        self,
        width: int,
        n_classes: int,
        learning_rates: Sequence[float],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        momentum: float = 0.9,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        h = len(learning_rates)
        self._shape, self._momentum = (h, n_classes), momentum
        # Drawn on the CPU, so that they are the same on every device.
        generator = torch.Generator().manual_seed(derived_seed(seed, Purpose.HEADS, width))
        weight = torch.empty(h * n_classes, width, dtype=dtype, device="cpu")
        self.weight = weight.normal_(0.0, _INITIAL_STD, generator=generator).to(device)
        self.bias = torch.zeros(h * n_classes, dtype=dtype, device=device)
        self._of_weight, self._of_bias = (
            torch.zeros_like(self.weight),
            torch.zeros_like(self.bias),
        )
        self.rates = torch.tensor(learning_rates, dtype=dtype, device=device)
        self.n_not_finite = torch.zeros(h, dtype=torch.int64, device=device)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, h, C] of inputs [B, D]."""
        return torch.addmm(self.bias, x, self.weight.T).unflatten(1, self._shape)

    @torch.no_grad()
    def step(self, x: Tensor, labels: Tensor, factor: float) -> Tensor:
        """One step of every head.

        Args:
            x: [B, D] in the dtype of the weights.
            labels: int64 [B].
            factor: by which all learning rates are multiplied now, see `cosine`.

        Returns:
            the loss of each head before the step, [h].
        """
        h, classes = self._shape
        log_p = self.logits(x).log_softmax(2)
        own = labels[:, None, None].expand(-1, h, 1)
        losses = -log_p.gather(2, own)[..., 0].mean(0)
        self.n_not_finite += losses.isfinite().logical_not_()
        gradient = log_p.exp_()
        gradient.scatter_add_(2, own, gradient.new_full((), -1.0).expand(own.shape))
        gradient, share = gradient.flatten(1), 1 / len(x)  # of the mean over the batch
        self._of_weight.addmm_(gradient.T, x, beta=self._momentum, alpha=share)
        self._of_bias.mul_(self._momentum).add_(gradient.sum(0), alpha=share)
        down = (self.rates * -factor)[:, None]
        self.bias.view(h, classes).addcmul_(self._of_bias.view(h, classes), down)
        self.weight.view(h, classes, -1).addcmul_(
            self._of_weight.view(h, classes, -1), down[..., None]
        )
        return losses

    @torch.no_grad()
    def ranks(self, x: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """How many classes each head puts before the right one; of equals the first goes first.

        Args:
            x: [B, D].
            labels: int64 [B].
            classes: int64, those that are chosen among, the labels included; None for all.

        Returns:
            int64 [B, h]; 0 is a right answer.
        """
        logits = self.logits(x)
        own = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))
        numbers = torch.arange(logits.shape[2], device=x.device)
        if classes is not None:
            logits, numbers = logits[..., classes], classes
        before = (logits == own) & (numbers < labels[:, None])[:, None]
        return ((logits > own) | before).sum(2)

    def is_finite(self) -> Tensor:
        """Bool [h]: whether all weights of a head are finite, and its losses were."""
        finite = self.weight.isfinite().all(1) & self.bias.isfinite()
        return finite.view(self._shape).all(1) & (self.n_not_finite == 0)


class HeadGrid:
    """Heads for all widths of the features and kinds of input; those that share one are batched.

    Args:
        kinds: of input.
        widths: m, what each part of an input is cut to.
        n_classes: C.
        learning_rates: as they are used.
        seed: of the initial weights. Those of one input do not depend on which others there are.
        device: where the heads are.
        momentum: of SGD.

    Attributes:
        kinds, widths: as given. The heads of a width are ordered by kind, then by learning rate.
    """

    def __init__(
        self,
        kinds: Sequence[InputKind],
        widths: Sequence[int],
        n_classes: int,
        learning_rates: Sequence[float],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        momentum: float = 0.9,
    ) -> None:
        self.kinds, self.widths = tuple(kinds), tuple(widths)
        self._heads = {
            (m, kind): LinearHeads(
                m * (kind.blocks + kind.patch_mean),
                n_classes,
                learning_rates,
                seed,
                device,
                momentum=momentum,
            )
            for m in widths
            for kind in kinds
        }

    def step(self, features: BlockFeatures, labels: Tensor, factor: float) -> None:
        """One step of every head, see `LinearHeads.step`."""
        for (m, kind), heads in self._heads.items():
            heads.step(features.input_of(kind, m), labels, factor)

    def ranks(
        self, features: BlockFeatures, labels: Tensor, classes: Tensor | None = None
    ) -> dict[int, Tensor]:
        """For each width int64 [B, heads], see `LinearHeads.ranks`."""
        return {
            m: torch.cat(
                [
                    self._heads[m, kind].ranks(features.input_of(kind, m), labels, classes)
                    for kind in self.kinds
                ],
                1,
            )
            for m in self.widths
        }

    def is_finite(self, width: int) -> Tensor:
        """Bool [heads] on the CPU, see `LinearHeads.is_finite`."""
        return torch.cat([self._heads[width, kind].is_finite() for kind in self.kinds]).cpu()


def cosine(step: int, steps: int) -> float:
    """The share of the learning rate in a step: (1 + cos(pi step / steps)) / 2.

    Example:
        >>> cosine(0, 10), round(cosine(5, 10), 3), cosine(9, 10) > 0
        (1.0, 0.5, True)
    """
    return (1 + math.cos(math.pi * step / steps)) / 2
