"""Memory, communication and work of a training step, planned from the code's own shapes.

Parameters, gradients, moments and teacher are exact: they are the shapes of the networks, and of
the rows that the fullest rank holds where they are sharded. What the forward pass keeps is found by
running it without storage (`plan_step`). The sum takes all of it to be there at once, and leaves
out what lives for an operation only; docs/scale.md says how near that came to measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from franca_fast.backends._streamed_backward import CHUNK_ELEMENTS
from franca_fast.config.data import mean_masked_patches
from franca_fast.config.files import load_config
from franca_fast.config.schema import Config, ShardedModuleConfig
from franca_fast.errors import InputError
from franca_fast.planning.measure import (
    StepMemory,
    build_without_storage,
    measure_step,
    step_flops,
)
from franca_fast.training.distributed.parallelize import is_sharded, transport_dtypes
from franca_fast.training.distributed.world import World
from franca_fast.training.precision import DTYPES
from franca_fast.training.student_teacher import StudentTeacher

_SINKHORN_ITERATIONS = 3
# FSDP2 gathers the next unit while one is computed.
_UNITS_AT_ONCE = 2


@dataclass(frozen=True)
class LayoutPlan:
    """One way to spread a step over the GPUs. Bytes are those of one GPU, the fullest.

    Attributes:
        name: "1 GPU", "replicated", "FSDP2" or "HSDP <ranks of a copy>".
        shards: GPUs that share one copy of the parameters.
        memory: kind -> bytes that are there for the whole step.
        workspace: kind -> bytes, with scores stored and streamed; the larger of what the backward
            pass needs for a moment.
        totals: "<kept or checkpointed> activations, <stored or streamed> scores" -> bytes.
        communication: kind -> bytes that one GPU sends in a step.
    """

    name: str
    shards: int
    memory: dict[str, int]
    workspace: dict[str, int]
    totals: dict[str, int]
    communication: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """The plan of a configuration on a number of GPUs.

    Attributes:
        arch: the architecture.
        gpus: their number.
        images: images of a step, over all GPUs and micro-batches.
        micro_batches: of a step.
        chosen: name of the layout that the configuration asks for.
        precision: of the matrix products.
        parameters: part of the student -> number of parameters.
        prototypes: of all nested heads of one kind together.
        masked_patches: in one GPU's batch, on average.
        activations: what one GPU's forward pass keeps, in bytes, however the rest is spread.
        layouts: the ways to spread it.
        flops: part -> floating-point operations of one GPU in a micro-batch.
    """

    arch: str
    gpus: int
    images: int
    micro_batches: int
    chosen: str
    precision: str
    parameters: dict[str, int]
    prototypes: int
    masked_patches: int
    activations: StepMemory
    layouts: list[LayoutPlan]
    flops: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain numbers, for JSON."""
        return asdict(self)

    def step_flops(self, *, checkpointed: bool = False, streamed: bool = False) -> float:
        """Floating-point operations of one GPU in a step."""
        parts = ("teacher", "student", "heads", "backward")
        total = sum(self.flops[part] for part in parts)
        total += self.flops["streamed_scores" if streamed else "scores"]
        return self.micro_batches * (total + (self.flops["student"] if checkpointed else 0.0))


def plan_training(
    config: Config | Mapping[str, Any] | str | Path,
    gpus: int,
    *,
    precision: str | None = None,
    shard_ranks: int | None = None,
) -> Plan:
    """Plans a training step.

    Args:
        config: as in `load_config`; its batch size is that of one GPU.
        gpus: number of GPUs.
        precision: bf16, fp16 or fp32; default `compute_precision.autocast`, where "auto" is bf16.
        shard_ranks: GPUs that share one copy in the HSDP layout, a divisor of `gpus`; default
            `train.shard_ranks`, or 8, or none where 8 does not divide `gpus` or is all of them.

    Returns:
        the plan, without having used a GPU or any storage.

    Raises:
        InputError: wrong configuration, or numbers that do not fit.

    Example:
        >>> plan = plan_training("demo", 1)
        >>> plan.layouts[0].memory["gradients"] == 4 * sum(plan.parameters.values())
        True
    """
    checked = load_config(config)
    name = precision or checked.compute_precision.autocast
    name = "bf16" if name == "auto" else name
    if name not in DTYPES:
        raise InputError(f"precision: '{name}'; accepted: {', '.join(DTYPES)}")
    if gpus < 1:
        raise InputError(f"gpus: {gpus}; accepted: 1 or more")
    shard_ranks = shard_ranks or checked.train.shard_ranks
    if shard_ranks is not None and gpus > 1 and (shard_ranks < 2 or gpus % shard_ranks):
        raise InputError(f"shard_ranks: {shard_ranks}; accepted: a divisor of {gpus} above 1")
    model = build_without_storage(checked)
    student = model.student
    sharded = is_sharded(student, checked, World(size=gpus))
    step = measure_step(model, checked, DTYPES[name])
    layouts = [
        _plan_layout(label, model, checked, step, gpus, shards, DTYPES[name])
        for label, shards in _layouts(gpus, shard_ranks)
    ]
    shards = (checked.train.shard_ranks or gpus) if sharded else 1
    micro_batches = checked.train.gradient_accumulation_steps
    return Plan(
        arch=checked.student.arch,
        gpus=gpus,
        images=gpus * checked.train.batch_size_per_gpu * micro_batches,
        micro_batches=micro_batches,
        chosen=next(layout.name for layout in layouts if layout.shards == shards),
        precision=name,
        parameters={
            part: sum(p.numel() for p in module.parameters())
            for part, module in student.named_children()
        },
        prototypes=sum(next(iter(student.heads().values())).out_dims),
        masked_patches=mean_masked_patches(checked),
        activations=step,
        layouts=layouts,
        flops=step_flops(model, checked),
    )


def _layouts(gpus: int, shard_ranks: int | None) -> list[tuple[str, int]]:
    if gpus == 1:
        return [("1 GPU", 1)]
    layouts = [("replicated", 1), ("FSDP2", gpus)]
    ranks = shard_ranks or 8
    if gpus % ranks == 0 and ranks < gpus:
        layouts.append((f"HSDP {ranks}", ranks))
    return layouts


def _plan_layout(
    name: str,
    model: StudentTeacher,
    config: Config,
    step: StepMemory,
    gpus: int,
    shards: int,
    compute: torch.dtype,
) -> LayoutPlan:
    # Elements on the fullest rank: rows are dealt in equal shares, rounded up.
    rows = sum(-(-p.shape[0] // shards) * prod(p.shape[1:]) for p in model.student.parameters())
    memory = {
        "parameters": 4 * rows,
        "gradients": 4 * rows,
        "moments": 8 * rows,
        "teacher": 4 * rows,
        "images": _image_bytes(config),
    }
    units, itemsize = _Units(model, config, compute), compute.itemsize
    if shards > 1:
        copies = {"stored": units.gathered, "streamed": units.gathered}
        transient = units.largest * (itemsize + 4)
        communication = {
            kind: config.train.gradient_accumulation_steps * sent
            for kind, sent in units.traffic(shards, gpus).items()
        }
    else:
        copies = {"stored": step.stored_copies, "streamed": step.streamed_copies}
        transient = 0
        communication = {"gradients": _all_reduce(4 * rows, gpus)}
    kinds = [(loss.student, loss.head.out_dims) for loss in model.scored_rows(config)]
    # Streamed, the gradient of the largest prototypes beside a chunk of that of their scores.
    chunk = max((min(CHUNK_ELEMENTS, n * max(widths)) for n, widths in kinds), default=0)
    workspace = {
        "stored": transient + itemsize * max((n * sum(widths) for n, widths in kinds), default=0),
        "streamed": transient + itemsize * (_largest_prototypes(model) + chunk),
    }
    scores = {"stored": step.stored_scores, "streamed": step.streamed_scores}
    activations = {"kept": step.backbone, "checkpointed": step.checkpointed}
    static = sum(memory.values())
    # Replicated gradients are averaged in one piece, when the activations have gone.
    averaging = 4 * rows if shards == 1 and gpus > 1 else 0
    totals = {}
    for activation, kept in activations.items():
        for mode, score in scores.items():
            passing = copies[mode] + kept + step.projections + score + workspace[mode]
            totals[f"{activation} activations, {mode} scores"] = static + max(passing, averaging)
    return LayoutPlan(
        name,
        shards,
        memory | {"16-bit weights": copies["stored"]},
        workspace,
        totals,
        communication
        | {
            kind: config.train.gradient_accumulation_steps * sent
            for kind, sent in _loss_traffic(model, config, gpus).items()
        },
    )


def _image_bytes(config: Config) -> int:
    """A batch of crops in float32."""
    batch, crops = config.train.batch_size_per_gpu, config.crops
    pixels = 2 * crops.global_crops_size**2 + crops.local_crops_number * crops.local_crops_size**2
    return 4 * 3 * batch * pixels


class _Units:
    """What FSDP2 gathers and frees together: each block, each set of prototypes, the rest."""

    def __init__(self, model: StudentTeacher, config: Config, compute: torch.dtype) -> None:
        self._compute, itemsize = compute, compute.itemsize
        student = config.compute_precision.student
        backbone = model.student.backbone
        blocks = [_elements(block) for block in backbone.blocks]
        rest = _elements(backbone) - sum(blocks)
        self.largest = max([*blocks, rest])
        self.kept = self.freed = self.prototypes = 0
        self._reduced = self._group(_elements(backbone), [*blocks, rest], student.backbone)
        for name, head in model.student.heads().items():
            sets = [_elements(layer) for layer in head.last_layers]
            rest = _elements(head) - sum(sets)
            self.largest = max(self.largest, rest, *sets)
            self.prototypes += sum(sets)
            settings = getattr(student, name)
            self._reduced += self._group(rest, [rest], settings)
            self._reduced += sum(sets) * self._reduce_size(settings)
        self._teacher = _elements(model.teacher)
        # The teacher's backbone is freed as it goes, its prototypes wait for the losses.
        self.gathered = itemsize * (
            self.kept + 2 * self.prototypes + (self.freed and _UNITS_AT_ONCE * max(blocks))
        )

    def _group(self, elements: int, units: list[int], settings: ShardedModuleConfig) -> int:
        if settings.sharding_strategy == "FULL_SHARD":
            self.freed += elements
        else:
            self.kept += elements
        return elements * self._reduce_size(settings)

    def _reduce_size(self, settings: ShardedModuleConfig) -> int:
        """Bytes of a gradient on its way."""
        return transport_dtypes(settings.mixed_precision, self._compute)[1].itemsize

    def traffic(self, shards: int, gpus: int) -> dict[str, int]:
        """Bytes sent for parameters and gradients."""
        gathers = self.kept + self.prototypes + 2 * self.freed + self._teacher
        sent = {
            "parameters": _gather(self._compute.itemsize * gathers, shards),
            "gradients": _gather(self._reduced, shards),
        }
        if shards < gpus:
            sent["gradients between copies"] = _all_reduce(self._reduced // shards, gpus // shards)
        return sent


def _elements(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _all_reduce(n_bytes: int, ranks: int) -> int:
    """Bytes that one rank sends in a ring all-reduce."""
    return 2 * n_bytes * (ranks - 1) // ranks


def _gather(n_bytes: int, ranks: int) -> int:
    """Bytes that one rank sends in a ring all-gather, or reduce-scatter, of so many in all."""
    return n_bytes * (ranks - 1) // ranks


def _loss_traffic(model: StudentTeacher, config: Config, gpus: int) -> dict[str, int]:
    if gpus == 1:
        return {}
    prototypes = sum(sum(loss.head.out_dims) for loss in model.scored_rows(config))
    # Sinkhorn-Knopp: one MAX and one SUM for each iteration; centering: one mean.
    sums = 1 + _SINKHORN_ITERATIONS if config.train.centering == "sinkhorn_knopp" else 1
    traffic = {"assignments": sums * _all_reduce(4 * prototypes, gpus)}
    if "koleo" in model.weights and model.koleo_over_ranks:
        tokens = 2 * config.train.batch_size_per_gpu * model.student.backbone.embed_dim
        # CLS tokens of both crops are gathered, and their gradients are summed.
        whole = 4 * tokens * gpus
        traffic["CLS tokens for KoLeo"] = _gather(whole, gpus) + _all_reduce(whole, gpus)
    return traffic


def _largest_prototypes(model: StudentTeacher) -> int:
    sets: list[Any] = [s for head in model.student.heads().values() for s in head.last_layers]
    return max(s.weight_v.numel() for s in sets)
