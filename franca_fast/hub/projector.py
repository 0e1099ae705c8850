"""The projector: directions of position in, one linear map out."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn

from franca_fast.errors import InputError, RenamedError
from franca_fast.hub import projector_files as files
from franca_fast.models import (
    ProjectedBackbone,
    ProjectedEncoder,
    RemovePositions,
    VisionTransformer,
)

# A direction that lies so nearly in the span of those before it (sine of the angle) adds nothing.
_DEPENDENT = 1e-6


class PositionProjector:
    """Removes the directions that tell a patch token's absolute position; never changes.

    RASA fits, again and again, a read-out of (row, column) from patch tokens, and removes the two
    directions that it reads. By default all of them together get one orthonormal basis U [m, d],
    and features z become P z with P = I - U^T U: a projection, so nothing removed comes back.

    The released code removes the pairs one after the other (each pair made orthonormal by
    Gram-Schmidt) although their planes are not orthogonal to each other, so that part of what one
    step removes is put back by later ones. `compatible=True` does exactly that and gives the
    outputs of released files to rounding.

    It is for the normalised patch tokens (`x_norm_patchtokens`), on which it is fitted, as in the
    paper and the released code. CLS and register tokens stay as they are.

    Args:
        weights: [i, 2, d], the read-outs of row and column of i iterations, in their order.
        compatible: whether to remove them as the released code does.
        facts: what is known of the fit, JSON-able; kept in files.

    Attributes:
        weights: as given, float32 [i, 2, d].
        compatible: as given.
        facts: as given.
        read, write: float64 [m, d]; the map is z -> z - write^T (read z). Both are U by default.

    Raises:
        InputError: not [i, 2, d], not finite, a zero direction, or nothing would be left.

    Example:
        >>> projector = PositionProjector(torch.randn(3, 2, 16))
        >>> projector.rank, projector.apply(torch.randn(2, 9, 16)).shape
        (6, torch.Size([2, 9, 16]))
    """

    def __init__(
        self,
        weights: Tensor,
        *,
        compatible: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        _check_weights(weights)
        self.weights = weights.detach().float().cpu().clone()
        self.compatible = compatible
        self.facts = dict(facts or {})
        remove = _one_after_the_other if compatible else _all_together
        self.read, self.write = remove(self.weights.double())
        if len(self.read) >= self.width:
            raise InputError(
                f"weights: {len(self.read)} directions of {self.width} leave nothing over; "
                f"accepted: at most {self.width - 1}"
            )

    @classmethod
    def from_files(
        cls, *paths: str | os.PathLike[str], compatible: bool | None = None
    ) -> PositionProjector:
        """Reads released files (`.pth`) or those that `save` wrote (`.safetensors`).

        A released file holds `pre_pos_layers.<i>.weight` and `pos_pred.weight`, each [2, d], which
        are taken in this order; a `rasa_head.` in front is accepted, so a file that holds a
        backbone too can be named. Nothing in a file is run.

        Args:
            paths: one file, or several whose directions follow one another.
            compatible: True for the released code's outputs, False for one projection of all
                directions, None for what a `.safetensors` file says of itself (`.pth`: False).

        Raises:
            InputError: no such file, damaged, other keys, widths that differ, or objects that are
                not tensors.

        Example:
            >>> torch.save({"pos_pred.weight": torch.randn(2, 8)}, "rasa.pth")
            >>> PositionProjector.from_files("rasa.pth").rank
            2
        """
        if not paths:
            raise InputError("rasa: no file; accepted: one or more")
        read = [files.read_weights(path) for path in paths]
        widths = {file.weights.shape[2] for file in read}
        if len(widths) > 1:
            raise InputError(f"rasa: files of widths {sorted(widths)}; accepted: one width")
        modes = {file.compatible for file in read}
        if compatible is None and len(modes) > 1:
            raise InputError("compatible: None, for files of both kinds; accepted: True or False")
        return cls(
            torch.cat([file.weights for file in read]),
            compatible=modes.pop() if compatible is None else compatible,
            facts=read[0].facts if len(read) == 1 else None,
        )

    @classmethod
    def fit(cls, *unused: Any, **given: Any) -> NoReturn:
        """Was the name of `franca_fast.rasa.fit` in 0.1."""
        raise RenamedError("PositionProjector.fit: since 0.2 it is franca_fast.rasa.fit")

    @property
    def width(self) -> int:
        """Width d of the features."""
        return self.weights.shape[2]

    @property
    def rank(self) -> int:
        """Number m of directions that are removed: twice the iterations, as a rule."""
        return len(self.read)

    def matrix(self) -> Tensor:
        """The whole map as one matrix M, float64 [d, d], for column vectors: cleaned = M z."""
        identity = torch.eye(self.width, dtype=torch.float64)
        return identity - self.write.T @ self.read

    def first(self, iterations: int) -> PositionProjector:
        """The projector of the first iterations only.

        Raises:
            InputError: there are not so many.
        """
        if not 1 <= iterations <= len(self.weights):
            raise InputError(f"iterations: {iterations}; accepted: 1 to {len(self.weights)}")
        return PositionProjector(self.weights[:iterations], compatible=self.compatible)

    def apply(self, features: Tensor) -> Tensor:
        """Removes the directions from features.

        Args:
            features: [..., d] on any device; half precisions are computed in float32.

        Returns:
            the same shape and dtype.

        Raises:
            InputError: another width.
        """
        return self.module().to(features.device)(features)

    def module(self) -> RemovePositions:
        """The map as a module without parameters, for the end of a network's patch tokens."""
        module = RemovePositions(self.rank, self.width)
        module.read.copy_(self.read)
        module.write.copy_(self.write)
        return module

    @overload
    def attach(self, model: VisionTransformer) -> ProjectedBackbone: ...

    @overload
    def attach(self, model: Any) -> ProjectedBackbone | ProjectedEncoder: ...

    def attach(self, model: Any) -> ProjectedBackbone | ProjectedEncoder:
        """An encoder whose normalised patch tokens come out with positions removed.

        Args:
            model: a backbone, or anything else with `forward_features` (what `load_encoder`
                gives, or a module of your own); shares its weights with the result and is not
                changed.

        Returns:
            of a backbone a `ProjectedBackbone`, of anything else a `ProjectedEncoder`.

        Raises:
            InputError: another width, no `forward_features`, or positions are removed already.

        Example:
            >>> from franca_fast.models import build_backbone
            >>> model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
            >>> clean = PositionProjector(torch.randn(2, 2, 128)).attach(model)
            >>> clean.forward_features(torch.randn(1, 3, 28, 28))["x_norm_patchtokens"].shape
            torch.Size([1, 16, 128])
        """
        if isinstance(model, VisionTransformer):
            return ProjectedBackbone.of(model, self.module())
        return ProjectedEncoder(model, self.module())

    def fold(self, layer: nn.Linear) -> nn.Linear:
        """A copy of a linear layer that gives on raw patch tokens what it gives on cleaned ones.

        With the map z -> M z and the layer's W and b: W (M z) + b = (W M) z + b, so the weight
        becomes W M, computed in float64, and the bias stays.

        Only a layer that reads patch tokens directly can take the map up, such as a segmentation
        probe. The backbone's own last layer, a LayerNorm, comes before the map and cannot: its
        scale acts on single dimensions and its mean and variance are those of each token. A
        backbone by itself gets the map as one more layer (`attach`).

        Args:
            layer: reads patch tokens [..., d]; not changed.

        Raises:
            InputError: no linear layer, or another width.

        Example:
            >>> projector, probe = PositionProjector(torch.randn(2, 2, 16)), nn.Linear(16, 3)
            >>> z = torch.randn(5, 16)
            >>> torch.allclose(projector.fold(probe)(z), probe(projector.apply(z)), atol=1e-5)
            True
        """
        if not isinstance(layer, nn.Linear):
            raise InputError(f"layer: {type(layer).__name__}; accepted: a torch.nn.Linear")
        if layer.in_features != self.width:
            raise InputError(f"layer: reads {layer.in_features} features; accepted: {self.width}")
        folded = copy.deepcopy(layer)
        with torch.no_grad():
            weight = layer.weight.double().cpu()
            folded.weight.copy_(weight - (weight @ self.write.T) @ self.read)
        return folded

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the projector, complete or not at all.

        - `.safetensors`: the read-outs as `weights`, and the whole map as `matrix`, float32
          [d, d], for other programs: `cleaned = tokens @ matrix.T`.
        - `.pth`: the released form, which the released code reads too. Unless `compatible`, the
          orthonormal basis is written, for which one after the other is all together.

        Raises:
            InputError: another suffix, or the file exists and `overwrite` is false.
            OSError: the file cannot be written.
        """
        files.write_projector(
            path,
            files.ProjectorFile(self.weights, self.compatible, self.facts),
            matrix=self.matrix().float(),
            planes=list(self.weights) if self.compatible else self.write.float().split(2),
            overwrite=overwrite,
        )

    def __repr__(self) -> str:
        kind = "compatible" if self.compatible else "orthonormal"
        return f"PositionProjector(width={self.width}, rank={self.rank}, {kind})"


def _all_together(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the orthonormal basis [m, d] of all directions [i, 2, d], in their order."""
    basis: list[Tensor] = []
    for direction in weights.flatten(0, 1):
        rest = direction / direction.norm()
        for _ in range(2):  # the second time removes what rounding left
            rest = _without(rest, basis)
        if rest.norm() > _DEPENDENT:
            basis.append(_without(rest / rest.norm(), basis))
    u = torch.stack([direction / direction.norm() for direction in basis])
    return u, u


def _one_after_the_other(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(read, write) of removing one plane after the other.

    Removing u from z' leaves z' - u <u, z'>; with z' = M z, what earlier steps made of z,
    <u, z'> = <M^T u, z>. So u is what to write and M^T u what to read.
    """
    so_far = torch.eye(weights.shape[2], dtype=weights.dtype)
    read, write = [], []
    for row, column in weights:
        u = row / row.norm()
        column = column / column.norm()
        v = column - (column @ u) * u
        if v.norm() <= _DEPENDENT:
            raise InputError(
                "weights: row and column of an iteration are the same direction; accepted: a plane"
            )
        plane = torch.stack([u, v / v.norm()])
        read.append(plane @ so_far)
        write.append(plane)
        so_far = so_far - plane.T @ (plane @ so_far)
    return torch.cat(read), torch.cat(write)


def _without(direction: Tensor, basis: Sequence[Tensor]) -> Tensor:
    for u in basis:
        direction = direction - (u @ direction) * u
    return direction


def _check_weights(weights: Tensor) -> None:
    if weights.dim() != 3 or weights.shape[0] < 1 or weights.shape[1] != 2:
        raise InputError(f"weights: {tuple(weights.shape)}; accepted: [iterations, 2, d]")
    if not weights.is_floating_point() or not bool(torch.isfinite(weights).all()):
        raise InputError("weights: not all finite numbers; accepted: finite floating point")
    if bool((weights.flatten(0, 1).norm(dim=1) == 0).any()):
        raise InputError("weights: a direction is zero; accepted: others")
