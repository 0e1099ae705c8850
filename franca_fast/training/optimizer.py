"""Parameter groups, AdamW, gradient clipping and the teacher's moving average."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.config.schema import OptimConfig
from franca_fast.training.distributed.parallelize import local
from franca_fast.training.schedules import StepValues

_EMBEDDINGS = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
# The moving average needs a scaled copy of the student's parameters; tensors are taken in groups of
# about this many elements so that the copy stays small.
_EMA_GROUP_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class ParameterRule:
    """How a parameter follows the schedules.

    Attributes:
        lr_multiplier: factor of the learning rate.
        wd_multiplier: factor of the weight decay, 0 or 1.
        is_last_layer: whether it follows the last layer's schedule, which begins frozen.
    """

    lr_multiplier: float
    wd_multiplier: float
    is_last_layer: bool


def parameter_rule(
    name: str, *, n_blocks: int, layerwise_decay: float = 1.0, patch_embed_lr_mult: float = 1.0
) -> ParameterRule:
    """The rule for one parameter, from its name within the backbone or a head.

    The learning-rate factor is layerwise_decay^(n_blocks + 1 - layer): embeddings are layer 0,
    block i is layer i + 1, the rest of a backbone is n_blocks + 1. The patch embedding is further
    scaled by `patch_embed_lr_mult`. Biases, norms and LayerScale gammas have no weight decay.

    Args:
        name: the parameter's name within its module.
        n_blocks: blocks of the backbone; 0 for a head, which has no decay over layers.
        layerwise_decay: factor from one layer to the one below it.
        patch_embed_lr_mult: factor of the patch embedding.

    Example:
        >>> parameter_rule("blocks.1.norm1.bias", n_blocks=2, layerwise_decay=0.5)
        ParameterRule(lr_multiplier=0.5, wd_multiplier=0.0, is_last_layer=False)
    """
    layer = n_blocks + 1
    block = _BLOCK.search(name)
    if n_blocks and any(part in name for part in _EMBEDDINGS):
        layer = 0
    elif n_blocks and block:
        layer = int(block.group(1)) + 1
    lr_multiplier = layerwise_decay ** (n_blocks + 1 - layer)
    if "patch_embed" in name:
        lr_multiplier *= patch_embed_lr_mult
    decays = not (name.endswith(".bias") or "norm" in name or "gamma" in name)
    return ParameterRule(lr_multiplier, float(decays), "last_layer" in name)


def parameter_groups(student: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """The optimizer's groups: parameters of one module that share a rule.

    Args:
        student: its children are the backbone and the heads.
        optim: gives layerwise_decay and patch_embed_lr_mult.

    Returns:
        dictionaries with `params`, `names` (with the module's name) and the rule's three values.
    """
    groups: dict[tuple[str, ParameterRule], dict[str, Any]] = {}
    for module_name, module in student.named_children():
        n_blocks = len(getattr(module, "blocks", ()))
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            rule = parameter_rule(
                name,
                n_blocks=n_blocks,
                layerwise_decay=optim.layerwise_decay,
                patch_embed_lr_mult=optim.patch_embed_lr_mult,
            )
            group = groups.setdefault(
                (module_name, rule), {"params": [], "names": [], **vars(rule)}
            )
            group["params"].append(parameter)
            group["names"].append(f"{module_name}.{name}")
    return list(groups.values())


class LocalOptimizer:
    """AdamW over this rank's rows of the student's parameters.

    Learning rate and weight decay are set at every step. The fused form updates in place without
    temporaries, and can leave a step out on the device (see `apply_step`) without asking the host.
    A parameter that is not sharded is its own shard.

    Args:
        student: its children are the backbone and the heads; already where it stays.
        optim: gives layerwise_decay, patch_embed_lr_mult and the betas.

    Attributes:
        adamw: the optimizer itself.
        shards: name of the parameter -> its rows here; those without any are left out.
        modules: name of the child -> names of its parameters.
    """

    def __init__(self, student: nn.Module, optim: OptimConfig) -> None:
        self.shards: dict[str, Tensor] = {}
        self.modules: dict[str, list[str]] = {name: [] for name, _ in student.named_children()}
        self._parameters: dict[str, nn.Parameter] = {}
        groups = parameter_groups(student, optim)
        for group in groups:
            named = zip(group.pop("names"), group["params"], strict=True)
            shards = {name: local(parameter) for name, parameter in named}
            shards = {name: shard for name, shard in shards.items() if shard.numel()}
            group["params"] = list(shards.values())
            self.shards |= shards
        for name, parameter in student.named_parameters():
            if name in self.shards:
                self._parameters[name] = parameter
                self.modules[name.partition(".")[0]].append(name)
        betas = (optim.adamw_beta1, optim.adamw_beta2)
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for name, parameter in self._parameters.items():
            parameter.grad = self.shards[name].grad = None

    def take_gradients(self) -> None:
        """Hands the shards the gradients that the backward pass left with the parameters."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.shards[name].grad = local(parameter.grad)

    def gradients(self, module: str) -> list[Tensor]:
        """The gradients of one module's shards."""
        shards = (self.shards[name] for name in self.modules[module])
        return [shard.grad for shard in shards if shard.grad is not None]


def set_schedule(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Gives every group the learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        lr = values.last_layer_lr if group["is_last_layer"] else values.lr
        group["lr"] = lr * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["wd_multiplier"]


def squared_norms(optimizer: LocalOptimizer) -> Tensor:
    """Sum of the squared gradients of each module's shards, [modules]."""
    device = next(iter(optimizer.shards.values())).device
    return torch.stack([_square(optimizer.gradients(name), device) for name in optimizer.modules])


def clip_gradients(optimizer: LocalOptimizer, norms: Tensor, max_norm: float) -> None:
    """Scales the gradients of each module down to `max_norm`, each module by its own norm.

    The backbone and each head are clipped apart, as DINOv2 does, so that a burst in one head does
    not shrink the step of the rest.

    Args:
        optimizer: has the gradients.
        norms: of each module, over all shards, [modules]; on the device, not read by the host.
        max_norm: largest norm; 0 clips nothing.
    """
    if max_norm:
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for name, factor in zip(optimizer.modules, factors.unbind(), strict=True):
            torch._foreach_mul_(optimizer.gradients(name), factor)


def _square(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:  # a rank without any rows of a small module
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


def apply_step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Steps the optimizer, or changes nothing at all where `finite` is false.

    Args:
        optimizer: a fused AdamW.
        finite: 0-dim bool tensor on the device; it is not read by the host.
    """
    # Fused optimizers read these two attributes; it is how torch.amp.GradScaler skips a step.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()


@torch.no_grad()
def update_teacher(
    teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: float, finite: Tensor
) -> None:
    """Moves the teacher's parameters: t <- momentum t + (1 - momentum) s, where `finite` holds.

    Args:
        teacher: parameters to update in place.
        student: the matching parameters.
        momentum: share of the teacher that stays, 0 to 1.
        finite: 0-dim bool tensor on the device; false leaves every value as it is.
    """
    kept = torch.where(finite, momentum, 1.0)
    # Not 1 - momentum rounded apart: the two must sum to 1, or the teacher slowly drifts.
    taken = 1.0 - kept
    for targets, sources in _groups(teacher, student):
        scaled = torch._foreach_mul(sources, taken)
        torch._foreach_mul_(targets, kept)
        torch._foreach_add_(targets, scaled)


def _groups(
    teacher: Sequence[Tensor], student: Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of lists of about `_EMA_GROUP_ELEMENTS` elements each."""
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    elements = 0
    for target, source in zip(teacher, student, strict=True):
        targets.append(target)
        sources.append(source)
        elements += target.numel()
        if elements >= _EMA_GROUP_ELEMENTS:
            yield targets, sources
            targets, sources, elements = [], [], 0
    if targets:
        yield targets, sources
