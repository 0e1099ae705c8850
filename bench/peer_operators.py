"""Operators and features beside those of Birder and timm, taking turns in one process.

Each function gives the variants of a work by name: the names of ours begin with "ours", another is
that of the peer, where it is installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from franca_fast.benchmarks.cases import (
    DTYPES,
    NESTED,
    STUDENT_TEMPERATURE,
    TEACHER_TEMPERATURE,
    as_result,
    make_logits,
)
from franca_fast.losses import NestedDINOLoss, NestedIBOTLoss
from franca_fast.models import build_backbone
from franca_fast.ops import sinkhorn_knopp, sinkhorn_potentials

FEWEST_ROUNDS = 3
Variants = dict[str, Callable[[], object]]


class Work(NamedTuple):
    """Something to time.

    Attributes:
        name: of the row.
        peer: the package beside which it stands.
        make: gives the variants, by name.
    """

    name: str
    peer: str
    make: Callable[[], Variants]


def works(widths: tuple[int, ...] = NESTED) -> Iterator[Work]:
    """All of them."""
    for n_rows in (64, 512):
        yield Work(f"sinkhorn N={n_rows} fp32", "birder", lambda n=n_rows: sinkhorn(n, widths))
    for dtype in ("fp32", "bf16"):
        yield Work(f"image loss B=16 {dtype}", "birder", lambda d=dtype: image_loss(d, widths))
    for dtype in ("fp32", "bf16"):
        yield Work(f"patch loss 500 rows {dtype}", "birder", lambda d=dtype: patch_loss(d, widths))
    for dtype in ("fp32", "bf16"):
        yield Work(f"features of 8 images {dtype}", "timm", lambda d=dtype: features(d))


def sinkhorn(n_rows: int, widths: tuple[int, ...]) -> Variants:
    """Sinkhorn-Knopp of all nested heads: the published assignments, or what ours makes of them."""
    heads = make_logits(n_rows, widths, torch.float32, "cpu")
    variants: Variants = {
        "ours potentials": lambda: sinkhorn_potentials(heads, TEACHER_TEMPERATURE),
        "ours assignments": lambda: sinkhorn_knopp(heads, TEACHER_TEMPERATURE),
    }
    if find_spec("birder"):
        from birder.net.ssl.franca import SinkhornKnoppMRL

        peer, temperature = SinkhornKnoppMRL(len(widths)), torch.tensor(TEACHER_TEMPERATURE)
        variants["birder"] = lambda: peer(tuple(heads), temperature)
    return variants


def image_loss(
    dtype: str, widths: tuple[int, ...], n_images: int = 16, n_local: int = 8
) -> Variants:
    """Targets, loss and gradients of the CLS tokens of two global and several local crops."""
    rows = {"teacher": 2 * n_images, "global": 2 * n_images, "local": n_local * n_images}
    heads = {name: make_logits(n, widths, DTYPES[dtype], "cpu") for name, n in rows.items()}
    student = [z.requires_grad_() for name in ("global", "local") for z in heads[name]]
    n_heads = len(widths)
    loss = NestedDINOLoss(widths, student_temp=STUDENT_TEMPERATURE)

    def ours(overwrite: bool) -> object:
        scores = [as_result(z) for z in student] if overwrite else student
        targets = loss.targets(heads["teacher"], TEACHER_TEMPERATURE)
        parts = loss(scores[:n_heads], scores[n_heads:], targets, overwrite_student=overwrite)
        return torch.autograd.grad(sum(part.sum() for part in parts.values()), scores)

    variants: Variants = {"ours": lambda: ours(False), "ours in place": lambda: ours(True)}
    if find_spec("birder"):
        from birder.net.ssl.franca import DINOLossMRL

        temperature = torch.tensor(TEACHER_TEMPERATURE)
        peer = DINOLossMRL(STUDENT_TEMPERATURE, n_heads)
        # Its teacher gives the two crops in reverse, so that each row's target is the other crop.
        reverse = tuple(torch.cat(z.chunk(2)[::-1]) for z in heads["teacher"])

        def birder() -> object:
            targets = peer.teacher_sinkhorn(reverse, temperature)
            local = peer(student[n_heads:], targets, n_crops=(n_local, 2), teacher_global=False)
            both = peer(student[:n_heads], targets, n_crops=2, teacher_global=True)
            return torch.autograd.grad((local + 2 * both) / (2 + 2 * n_local), student)

        variants["birder"] = birder
    return variants


def patch_loss(dtype: str, widths: tuple[int, ...], n_rows: int = 500) -> Variants:
    """Targets, loss and gradients of masked patches."""
    teacher, student = (make_logits(n_rows, widths, DTYPES[dtype], "cpu") for _ in range(2))
    student = [z.requires_grad_() for z in student]
    weights, masks = torch.full((n_rows,), 0.01), torch.zeros(8, n_rows // 4, dtype=torch.bool)
    loss = NestedIBOTLoss(widths, student_temp=STUDENT_TEMPERATURE)

    def ours(overwrite: bool) -> object:
        scores = [as_result(z) for z in student] if overwrite else student
        targets = loss.targets(teacher, TEACHER_TEMPERATURE)
        per_head = loss(scores, targets, weights, len(masks), overwrite_student=overwrite)
        return torch.autograd.grad(per_head.sum(), scores)

    variants: Variants = {"ours": lambda: ours(False), "ours in place": lambda: ours(True)}
    if find_spec("birder"):
        from birder.net.ssl.franca import iBOTPatchLossMRL

        temperature = torch.tensor(TEACHER_TEMPERATURE)
        peer = iBOTPatchLossMRL(STUDENT_TEMPERATURE, len(widths))

        def birder() -> object:
            targets = peer.teacher_sinkhorn(tuple(teacher), temperature)
            value = peer(tuple(student), targets, student_masks_flat=masks, masks_weight=weights)
            return torch.autograd.grad(value, student)

        variants["birder"] = birder
    return variants


def features(dtype: str, arch: str = "vit_small") -> Variants:
    """CLS tokens of 8 images by a ViT-S/14."""
    images = torch.randn(8, 3, 224, 224)
    network = build_backbone(arch, img_size=224, patch_size=14).eval()

    def under(call: Callable[[Tensor], Any]) -> Callable[[], object]:
        def run() -> object:
            on = dtype == "bf16"
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=on):
                return call(images)

        return run

    variants: Variants = {"ours": under(network)}
    if find_spec("timm"):
        import timm

        peer = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
        variants["timm"] = under(peer)
    return variants


def measure(work: Work, seconds: float) -> dict[str, Any]:
    """Seconds of each call, the variants taking turns after one call each that is not counted."""
    variants = work.make()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        call()
    start, rounds = time.monotonic(), 0
    while rounds < FEWEST_ROUNDS or time.monotonic() < start + seconds:
        rounds += 1
        for name, call in variants.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {"seconds": times}
