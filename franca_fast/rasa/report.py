"""How much of the position is left: freshly fitted probes on images that the fit has not seen."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from franca_fast.data.randomness import Purpose, permutation
from franca_fast.errors import InputError
from franca_fast.evaluation.encoders import Encoder, as_encoder
from franca_fast.evaluation.features import Source
from franca_fast.evaluation.pca import as_picture
from franca_fast.evaluation.pictures import save_png, sheet
from franca_fast.hub.projector import PositionProjector
from franca_fast.rasa.fit import TOKENS_PER_DIMENSION, crops_of
from franca_fast.rasa.patch_tokens import open_features, tokens_of
from franca_fast.rasa.positions import Moments, chance_error, patch_positions
from franca_fast.rasa.readout import Readout
from franca_fast.rasa.settings import FitSettings

_PICTURED = 8  # images
_TITLE = "Positions that a ridge probe reads from patches: red grows downwards, green to the right"
_BLUE = 0.5  # of the colours that stand for positions; red is the row, green the column


@dataclass(frozen=True)
class PositionError:
    """What is known of positions after so many iterations.

    Attributes:
        iterations: 0 is the backbone's own tokens.
        directions: removed so far.
        ridge_mse, ridge_r2: of ridge regression in closed form; R^2 = 1 - MSE / chance.
        energy_removed: share of the tokens' mean squared length that is gone.
        variance_removed: the same of the tokens' deviations from their mean.
        trained_mse, trained_r2: of the read-out that `fit` trains (sigmoid or linear), trained
            anew; None where it was not trained, between the first line and the last.
    """

    iterations: int
    directions: int
    ridge_mse: float
    ridge_r2: float
    energy_removed: float
    variance_removed: float
    trained_mse: float | None = None
    trained_r2: float | None = None


@dataclass(frozen=True)
class PositionReport:
    """What `position_report` found.

    Attributes:
        chance: mean square error of knowing nothing: the variance of the coordinates.
        grid: rows and columns of patches.
        probe_images, held_out_images: on how many the probes were fitted and measured.
        steps: before, and after each iteration.
        pictures: rows of `save_picture`: images, their patches' positions, and what the ridge
            probe reads before and after; red is the row, green the column, even grey is no
            knowledge.
    """

    chance: float
    grid: tuple[int, int]
    probe_images: int
    held_out_images: int
    steps: list[PositionError]
    pictures: dict[str, list[Image.Image]] = field(repr=False, compare=False)

    @property
    def before(self) -> PositionError:
        """Of the backbone's own tokens."""
        return self.steps[0]

    @property
    def after(self) -> PositionError:
        """After all iterations."""
        return self.steps[-1]

    def as_dict(self) -> dict[str, Any]:
        """All figures, JSON-able."""
        names = ("chance", "grid", "probe_images", "held_out_images")
        return {name: getattr(self, name) for name in names} | {
            "steps": [asdict(step) for step in self.steps]
        }

    def save_picture(self, path: str | os.PathLike[str]) -> None:
        """Draws `pictures` into a PNG.

        Raises:
            InputError: matplotlib is not installed.
        """
        save_png(sheet(self.pictures, _TITLE), path)


def position_report(
    model: Encoder | str | os.PathLike[str],
    images: Source,
    projector: PositionProjector,
    settings: FitSettings | None = None,
) -> PositionReport:
    """Measures how well linear probes find positions before and after their removal.

    The images, which should be others than those of the fit, are divided in two at random: probes
    are fitted on one half and measured on the other. At chance, R^2 is 0 (or a little below, since
    a probe fits what is accidental, too).

    Args:
        model: an encoder with patch tokens, used on the device it is on; or what `load_encoder`
            takes.
        images: image files, folders or shards.
        projector: fitted to this model.
        settings: crops, sizes and the trained read-out (in place of "covariance", which trains
            none, "sigmoid"); None takes the defaults.

    Raises:
        InputError: wrong arguments, too few images, or a projector of another width.

    Example:
        >>> from franca_fast.models import build_backbone
        >>> model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
        >>> projector = PositionProjector(torch.randn(2, 2, 128))
        >>> report = position_report(model, "FashionMNIST:split=TEST", projector)
        >>> len(report.steps), report.after.directions
        (3, 4)
    """
    settings = settings or FitSettings()
    if settings.readout == "covariance":
        settings = replace(settings, readout="sigmoid")
    encoder = as_encoder(model)
    crops = crops_of(encoder, images, settings)
    features = open_features(
        encoder, crops, cache_gb=settings.cache_gb, encode_batch=settings.encode_batch
    )
    if features.width != projector.width:
        raise InputError(
            f"projector: of width {projector.width}; accepted: the model's, {features.width}"
        )
    order = permutation(settings.seed, Purpose.SPARES, (), features.n_images).tolist()
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    positions = patch_positions(features.grid)
    least = -(-TOKENS_PER_DIMENSION * features.width // len(positions))
    if features.n_readable < 2 * least:
        raise InputError(
            f"images: {features.n_readable}; accepted: at least {2 * least}, to fit and measure "
            f"probes of width {features.width} on {len(positions)} patches each"
        )
    fitted, held_out = (
        Moments(features.batches(half, settings.batch_size), positions) for half in halves
    )
    steps = _steps(projector, fitted, held_out)
    readout = Readout(features, settings, halves[0])
    for i, matrix in ((0, None), (-1, projector.matrix())):
        weight, _ = readout.find(matrix, 0)
        error = readout.error(weight, matrix, halves[1])
        steps[i] = replace(steps[i], trained_mse=error, trained_r2=1 - error / readout.chance)
    shown = next(pixels for _, pixels in crops.batches(halves[1], _PICTURED))
    answers = [fitted.probe(m) for m in (torch.eye(projector.width).double(), projector.matrix())]
    pictures = _pictures(shown, tokens_of(encoder, shown).double().cpu(), answers)
    counts = (fitted.count // len(positions), held_out.count // len(positions))
    return PositionReport(chance_error(positions), features.grid, *counts, steps, pictures)


def _steps(projector: PositionProjector, fitted: Moments, held_out: Moments) -> list[PositionError]:
    """The ridge probe and the energies after 0, 1, 2, ... iterations."""
    identity = torch.eye(projector.width, dtype=torch.float64)
    total = held_out.energy(identity), held_out.spread(identity)
    steps = []
    for i in range(len(projector.weights) + 1):
        part = projector.first(i) if i else None
        matrix = identity if part is None else part.matrix()
        error = held_out.error(fitted.probe(matrix))
        steps.append(
            PositionError(
                iterations=i,
                directions=0 if part is None else part.rank,
                ridge_mse=error,
                ridge_r2=1 - error / held_out.variance,
                energy_removed=1 - held_out.energy(matrix) / total[0],
                variance_removed=1 - held_out.spread(matrix) / total[1],
            )
        )
    return steps


def _pictures(
    shown: Tensor, tokens: Tensor, probes: list[tuple[Tensor, Tensor]]
) -> dict[str, list[Image.Image]]:
    grid = (tokens.shape[1], tokens.shape[2])
    truth = patch_positions(grid).unflatten(0, grid).double()
    before, after = (tokens @ weights.T + bias + 0.5 for weights, bias in probes)
    return {
        "image": [as_picture(pixels) for pixels in shown],
        "position": [_colours(truth)] * len(shown),
        "read before": [_colours(read) for read in before],
        "read after": [_colours(read) for read in after],
    }


def _colours(positions: Tensor) -> Image.Image:
    """[rows, columns, 2] positions as colours, one pixel per patch."""
    blue = torch.full_like(positions[..., :1], _BLUE)
    colours = torch.cat([positions, blue], -1).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(colours.numpy())
