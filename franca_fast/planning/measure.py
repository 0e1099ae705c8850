"""What one step keeps in memory and computes, found by running its own code on shapes alone.

The student and teacher of a configuration are built without storage and given a batch without
storage (PyTorch's fake tensors), so a network of any size is measured in seconds on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from franca_fast.config.data import mean_masked_patches
from franca_fast.config.schema import Config
from franca_fast.data.batch import Batch
from franca_fast.models import VisionTransformer
from franca_fast.training.student_teacher import StudentTeacher

_BACKBONE, _PROJECTIONS, _SCORES, _COPIES = "backbone", "projections", "scores", "copies"


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a forward pass keeps for its backward pass, on one device.

    Attributes:
        backbone: activations of the student's backbone.
        checkpointed: the same when each block keeps its input only: all inputs, and one block.
        projections: activations of the student's heads up to the bottlenecks.
        stored_scores: scores of student and teacher, and what the losses keep beside them.
        streamed_scores: the same when scores are recomputed.
        stored_copies: 16-bit copies of weights that autocast keeps.
        streamed_copies: the same when scores are recomputed.
    """

    backbone: int
    checkpointed: int
    projections: int
    stored_scores: int
    streamed_scores: int
    stored_copies: int
    streamed_copies: int


def build_without_storage(config: Config) -> StudentTeacher:
    """Student, teacher and losses of a configuration on the meta device, in training mode."""
    with torch.device("meta"):
        return StudentTeacher(config).train()


def measure_step(
    model: StudentTeacher, config: Config, dtype: torch.dtype, device_type: str = "cuda"
) -> StepMemory:
    """Runs a forward pass of one device's batch without storage and sums up what it keeps.

    Args:
        model: from `build_without_storage`; only its shapes can be used afterwards.
        config: of the model.
        dtype: of the matrix products: bfloat16, float16 or float32.
        device_type: "cuda" or "cpu", whose autocast decides what runs in which type.
    """
    with FakeTensorMode():
        _give_fake_storage(model)
        batch = _fake_batch(config)
        meter = _Meter(model, batch)
        blocks = _watch(model, meter)
        results = {}
        for streamed in (False, True):
            model.streamed_scores = streamed
            meter.clear()
            # Fake GPU tensors need a GPU, so fake CPU tensors stand for them.
            autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
            gpu_rules = _GpuAutocast() if device_type == "cuda" else nullcontext()
            with autocast, gpu_rules, meter, saved_tensors_hooks(meter.keep, lambda tensor: tensor):
                model(batch, config.teacher.teacher_temp)
            results[streamed] = meter.totals()
    stored, streamed_ = results[False], results[True]
    per_block = [stored.get(name, 0) for name in blocks]
    return StepMemory(
        backbone=stored[_BACKBONE] + sum(per_block),
        checkpointed=stored[_BACKBONE]
        + sum(meter.inputs[name] for name in blocks)
        + max(per_block),
        projections=stored.get(_PROJECTIONS, 0),
        stored_scores=stored[_SCORES],
        streamed_scores=streamed_[_SCORES],
        stored_copies=stored.get(_COPIES, 0),
        streamed_copies=streamed_.get(_COPIES, 0),
    )


def crop_lists(config: Config) -> list[tuple[int, int]]:
    """(images, tokens of each) of the global and the local crops of one GPU's batch."""
    batch, crops, patch = config.train.batch_size_per_gpu, config.crops, config.student.patch_size
    extra = 1 + config.student.num_register_tokens
    lists = [(2 * batch, extra + (crops.global_crops_size // patch) ** 2)]
    if crops.local_crops_number:
        images = crops.local_crops_number * batch
        lists.append((images, extra + (crops.local_crops_size // patch) ** 2))
    return lists


class _GpuAutocast(TorchFunctionMode):
    """Autocast's rule for GPUs where it differs from that for CPUs: layer norms run in float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Casts the input of a layer norm; everything else passes."""
        if func is not torch.nn.functional.layer_norm:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(args[0].float(), *args[1:], **(kwargs or {}))


class _Meter(TorchDispatchMode):
    """Sums up the storage that autograd keeps, once each, by the part of the model that is running.

    Parameters and the batch are not counted; 16-bit copies of parameters are counted apart.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self._parameters = {_storage(p) for p in (*model.parameters(), *model.buffers())}
        given = [tensor for tensor in vars(batch).values() if isinstance(tensor, Tensor)]
        self._given = self._parameters | {_storage(tensor) for tensor in given}
        self.inputs: dict[str, int] = {}
        self.part = _SCORES
        self.clear()

    def clear(self) -> None:
        """Forgets what was counted."""
        self._copies: set[int] = set()
        self._counted: dict[int, tuple[str, int]] = {}
        # Storage is told apart by its address, so none may be freed meanwhile.
        self._alive: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Notes the copies of parameters."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and _storage(args[0]) in self._parameters:
            self._copies.add(_storage(result))
            self._alive.append(result)
        return result

    def keep(self, tensor: Tensor) -> Tensor:
        """Counts a tensor that autograd keeps."""
        storage = _storage(tensor)
        if storage not in self._given and storage not in self._counted:
            part = _COPIES if storage in self._copies else self.part
            self._counted[storage] = (part, tensor.untyped_storage().nbytes())
            self._alive.append(tensor)
        return tensor

    def totals(self) -> dict[str, int]:
        """Bytes by part."""
        sums: dict[str, int] = {}
        for part, n_bytes in self._counted.values():
            sums[part] = sums.get(part, 0) + n_bytes
        return sums

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Attributes what is kept inside to `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, attributed to `part`; notes the size of its first argument."""

        def wrapped(first: Any, *others: Any, **keywords: Any) -> Any:
            if isinstance(first, Tensor):
                self.inputs[part] = first.untyped_storage().nbytes()
            with self.within(part):
                return function(first, *others, **keywords)

        return wrapped


def _watch(model: StudentTeacher, meter: _Meter) -> list[str]:
    """Lets the meter know which part of the student runs; returns the names of the blocks."""
    backbone: Any = model.student.backbone
    backbone.forward_features = meter.wrap(_BACKBONE, backbone.forward_features)
    names = []
    for i, block in enumerate(cast("Sequence[Any]", backbone.blocks)):
        names.append(f"block {i}")
        block.forward_packed = meter.wrap(names[-1], block.forward_packed)
    for head in model.student.heads().values():
        watched: Any = head
        watched.bottlenecks = meter.wrap(_PROJECTIONS, head.bottlenecks)
    return names


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _give_fake_storage(model: nn.Module) -> None:
    """Replaces meta tensors by fake CPU ones, which autocast knows how to treat."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def _fake_batch(config: Config) -> Batch:
    """A batch without values, with as many masked patches as there are on average."""
    batch, crops = config.train.batch_size_per_gpu, config.crops
    sizes = [crops.global_crops_size, crops.local_crops_size]
    images = [torch.empty(n, 3, s, s) for (n, _), s in zip(crop_lists(config), sizes, strict=False)]
    n_patches = (crops.global_crops_size // config.student.patch_size) ** 2
    masked = mean_masked_patches(config)
    return Batch(
        global_crops=images[0],
        local_crops=images[1] if len(images) > 1 else None,
        masks=torch.empty(2 * batch, n_patches, dtype=torch.bool),
        mask_indices=torch.empty(masked, dtype=torch.int64),
        mask_weights=torch.empty(masked),
        keys=[],
    )


def step_flops(model: StudentTeacher, config: Config) -> dict[str, float]:
    """Floating-point operations of the matrix products of one GPU's step, by part.

    A product of [a, b] and [b, c] counts 2abc; the backward pass counts twice the forward pass.
    Attention counts 4 d sum(tokens^2). Stochastic depth leaves out its share of the student's
    images, and the last block most tokens (`VisionTransformer.forward_features`, "patches").

    Returns:
        "teacher" and "student" (backbone, forward), "heads" (of both, forward), "backward" (of the
        student and its heads), "scores" (of all heads, stored) and "streamed_scores".
    """
    crops = crop_lists(config)
    masked = mean_masked_patches(config) if "ibot" in model.weights else 0
    teacher = _backbone_flops(model.teacher.backbone, crops[:1], masked)
    student = _backbone_flops(model.student.backbone, crops, masked)
    teacher_heads = student_heads = stored = streamed = 0.0
    for head, rows, own, terms in model.scored_rows(config):
        linear = 2.0 * _linear_weights(head)
        teacher_heads, student_heads = teacher_heads + rows * linear, student_heads + own * linear
        prototypes: Any = head.last_layers
        products = 2.0 * sum(layer.weight_v.numel() for layer in prototypes)
        stored += products * (rows + 3 * own)
        # Four passes balance the teacher's scores; each term needs them again twice, and the
        # student's once more.
        streamed += products * (rows * (4 + 2 * terms) + 4 * own)
    return {
        "teacher": teacher,
        "student": student,
        "heads": teacher_heads + student_heads,
        "backward": 2.0 * (student + student_heads),
        "scores": stored,
        "streamed_scores": streamed,
    }


def _backbone_flops(
    backbone: VisionTransformer, crops: Sequence[tuple[int, int]], masked: int
) -> float:
    extra = 1 + backbone.num_register_tokens
    patches = sum(images * (tokens - extra) for images, tokens in crops)
    total = 2.0 * patches * backbone.patch_embed.proj.weight.numel()
    blocks: Any = backbone.blocks
    for block in blocks:
        rate = block.drop_path
        kept = [(max(1, int(images * (1.0 - rate))), tokens) for images, tokens in crops]
        rows = n_tokens = sum(images * tokens for images, tokens in kept)
        if block is blocks[-1]:  # of all images: what is left out is computed as well
            rows = masked + sum(images for images, _ in crops)
        qkv = _linear_weights(block.attn.qkv)
        total += 2.0 * (qkv * n_tokens + (_linear_weights(block) - qkv) * rows)
        total += 4.0 * backbone.embed_dim * sum(images * tokens**2 for images, tokens in kept)
    return total


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
