"""Linear segmentation heads on frozen patch tokens, one for each width, trained at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from franca_fast.data.randomness import Purpose, derived_seed
from franca_fast.evaluation.dense.probe.crops import NOT_COUNTED
from franca_fast.evaluation.dense.probe.upsampled_loss import UpsampledLoss

_INITIAL_STD = 0.01


class SegmentationHeads(nn.Module):
    """Batch normalisation and a 1x1 convolution for each width m, on the first m channels.

    Statistics of a channel are the same for all widths and are taken once. Scale, dropout and
    convolution are multiplied before they meet the tokens. What results is `nn.BatchNorm2d(m)`,
    dropout of whole channels and `nn.Conv2d(m, C, 1)`.

    Args:
        width: d of the tokens.
        dims: the widths m.
        n_classes: C.
        seed: of the initial convolutions, N(0, 0.01); their biases begin at 0.
        dtype: of the parameters.

    Example:
        >>> heads = SegmentationHeads(8, (4, 8), n_classes=3, seed=0)
        >>> [logits.shape for logits in heads(torch.randn(2, 5, 6, 8))]
        [torch.Size([2, 3, 5, 6]), torch.Size([2, 3, 5, 6])]
    """

    def __init__(
        self,
        width: int,
        dims: Sequence[int],
        n_classes: int,
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dims = tuple(dims)
        self.norm = nn.BatchNorm1d(width, affine=False, dtype=dtype)
        self.scales = nn.ParameterList(torch.ones(m, dtype=dtype) for m in dims)
        self.shifts = nn.ParameterList(torch.zeros(m, dtype=dtype) for m in dims)
        weights = []
        for m in dims:  # each as if it were alone
            generator = torch.Generator().manual_seed(derived_seed(seed, Purpose.HEADS, m))
            weight = torch.empty(n_classes, m, dtype=dtype, device="cpu")
            weights.append(weight.normal_(0.0, _INITIAL_STD, generator=generator))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(n_classes, dtype=dtype) for _ in dims)

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> list[Tensor]:
        """Logits of the patches.

        Args:
            tokens: [B, h, w, d], without gradient.
            kept: [B, d], what channels are multiplied by, see `dropout`; None for no dropout.

        Returns:
            for each width, [B, C, h, w].
        """
        batch, height, width, channels = tokens.shape
        x = self.norm(tokens.reshape(-1, channels)).view(batch, height * width, channels)
        outputs = []
        for m, *parts in zip(
            self.dims, self.scales, self.shifts, self.weights, self.biases, strict=True
        ):
            scale, shift, weight, bias = parts
            weight = weight.expand(batch, -1, -1) if kept is None else weight * kept[:, None, :m]
            bias = bias + weight @ shift
            logits = torch.baddbmm(bias[..., None], weight * scale, x[..., :m].transpose(1, 2))
            outputs.append(logits.unflatten(2, (height, width)))
        return outputs


def dropout(batch: int, width: int, rate: float, seed: int, step: int) -> Tensor:
    """What each channel of each image is multiplied by: 0, or 1 / (1 - rate).

    Drawn on the CPU from the seed and the step alone, so that it is the same on every device.

    Returns:
        float32 [batch, width].

    Example:
        >>> dropout(1, 4, 0.5, seed=0, step=0).unique().tolist()
        [0.0, 2.0]
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, Purpose.HEADS, 0, step))
    drawn = torch.rand(batch, width, generator=generator, device="cpu")
    return (drawn >= rate).float() / (1 - rate)


def train_step(
    heads: SegmentationHeads,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    targets: Tensor,
    kept: Tensor | None = None,
) -> Tensor:
    """One step of all heads.

    The loss is the mean cross entropy of the logits, upsampled bilinearly to the pixels, over the
    pixels that count.

    Args:
        heads: in training mode.
        optimizer: of their parameters.
        tokens: [B, h, w, d].
        targets: int64 [B, H, W], `NOT_COUNTED` where a pixel is in no loss.
        kept: see `SegmentationHeads.forward`.

    Returns:
        the loss of each width.
    """
    counted = (targets != NOT_COUNTED).sum().clamp(min=1)
    height, width = targets.shape[1:]
    loss_of = UpsampledLoss((tokens.shape[1], tokens.shape[2]), (height, width), tokens)
    losses = []
    with torch.enable_grad():
        optimizer.zero_grad()
        for logits in heads(tokens, kept):
            parts = [loss_of(*one) for one in zip(logits.detach(), targets, strict=True)]
            losses.append(torch.stack([loss for loss, _ in parts]).sum() / counted)
            logits.backward(torch.stack([gradient for _, gradient in parts]) / counted)
        optimizer.step()
    return torch.stack(losses)
