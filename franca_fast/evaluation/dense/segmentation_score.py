"""Intersection over union of predicted and true classes, from counts of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from franca_fast.errors import InputError

ABSENT = ("left out", "zero")


class Confusion:
    """Counts pixels by their true and their predicted class.

    Args:
        n_classes: number of classes C.
        ignore: the label that never counts; None where all do. It may be one of the classes, as 0
            is in ADE20K.

    Attributes:
        matrix: int64 [C, C], rows are labels and columns predictions.

    Example:
        >>> confusion = Confusion(3, ignore=255)
        >>> confusion.add(torch.tensor([0, 0, 1, 255]), torch.tensor([0, 1, 1, 2]))
        >>> confusion.iou().tolist(), confusion.miou()
        ([0.5, 0.5, nan], 50.0)
    """

    def __init__(self, n_classes: int, ignore: int | None = None) -> None:
        if n_classes < 1:
            raise InputError(f"n_classes: {n_classes}; accepted: 1 or more")
        self.n_classes, self.ignore = n_classes, ignore
        self.matrix = torch.zeros(n_classes, n_classes, dtype=torch.int64)

    def add(self, label: Tensor, predicted: Tensor) -> None:
        """Counts pixels.

        Args:
            label: int64 of any shape, classes or `ignore`.
            predicted: int64 of the same shape, classes.

        Raises:
            InputError: shapes that differ, or numbers that are no classes.
        """
        if label.shape != predicted.shape:
            raise InputError(
                f"predicted: {tuple(predicted.shape)}; accepted: the labels' shape, "
                f"{tuple(label.shape)}"
            )
        counted = torch.ones_like(label, dtype=torch.bool)
        if self.ignore is not None:
            counted = label != self.ignore
        rows, columns = label[counted].long().cpu(), predicted[counted.to(predicted.device)].cpu()
        for name, numbers in (("label", rows), ("predicted", columns)):
            wrong = (numbers < 0) | (numbers >= self.n_classes)
            if wrong.any():
                raise InputError(
                    f"{name}: {int(numbers[wrong][0])}; accepted: 0 to {self.n_classes - 1}"
                )
        places = rows * self.n_classes + columns.long()
        self.matrix += places.bincount(minlength=self.n_classes**2).view_as(self.matrix)

    def check_any(self) -> None:
        """Refuses test masks that show no class, of which there is no figure.

        Raises:
            InputError: no pixel was counted.
        """
        if not bool(self.matrix.any()):
            raise InputError("test: no pixel with a class; accepted: masks with classes")

    def iou(self) -> Tensor:
        """Intersection over union of each class.

        Returns:
            float64 [C]; NaN for a class that neither labels nor predictions have.
        """
        both = self.matrix.diagonal().double()
        either = (self.matrix.sum(0) + self.matrix.sum(1)).double() - both
        return torch.where(either > 0, both / either.clamp(min=1), torch.nan)

    def miou(self, absent: str = "left out") -> float:
        """The mean over classes, in per cent.

        Args:
            absent: what becomes of classes that no label shows: "left out" of the mean, so that
                only classes that occur count, or "zero", an IoU of 0 each, as torchmetrics-based
                projects count a class that neither labels nor predictions have; there a class that
                is ignored counts, too.

        Returns:
            per cent; NaN where no class counts.
        """
        if absent not in ABSENT:
            raise InputError(f"absent: '{absent}'; accepted: {', '.join(ABSENT)}")
        iou = self.iou()
        if absent == "zero":
            return 100 * float(iou.nan_to_num(0.0).mean())
        return 100 * float(iou[self.matrix.sum(1) > 0].mean())
