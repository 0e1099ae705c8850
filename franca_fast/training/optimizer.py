"""Parameter groups, and the update of student and teacher with clipped gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from franca_fast.config.schema import OptimConfig
from franca_fast.ops import adamw_update
from franca_fast.training.distributed.parallelize import local
from franca_fast.training.schedules import StepValues

_EMBEDDINGS = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


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

    `set_schedule` gives it learning rate and weight decay at every step, which `apply_step` does. A
    parameter that is not sharded is its own shard.

    Args:
        student: its children are the backbone and the heads; already where it stays.
        optim: gives layerwise_decay, patch_embed_lr_mult and the betas.

    Attributes:
        adamw: the groups and the state, in the form that torch's fused AdamW has.
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

    def state(self, name: str) -> dict[str, Tensor]:
        """The step and the moments of a shard, which start at 0."""
        shard = self.shards[name]
        state = self.adamw.state[shard]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=shard.device)
            state["exp_avg"] = torch.zeros_like(shard)
            state["exp_avg_sq"] = torch.zeros_like(shard)
        return state


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


def clip_factors(norms: Tensor, max_norm: float) -> Tensor | None:
    """What scales the gradients of each module down to `max_norm`, each module by its own norm.

    The backbone and each head are clipped apart, as DINOv2 does, so that a burst in one head does
    not shrink the step of the rest.

    Args:
        norms: of each module, over all shards, [modules]; on the device, not read by the host.
        max_norm: largest norm; 0 clips nothing.
    """
    return (max_norm / (norms + 1e-6)).clamp(max=1.0) if max_norm else None


def _square(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:  # a rank without any rows of a small module
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(gradients)).square().sum()


@torch.no_grad()
def apply_step(
    optimizer: LocalOptimizer,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    *,
    clip: Tensor | None,
    momentum: float,
    finite: Tensor,
) -> None:
    """Steps the optimizer and moves the teacher after it, or changes nothing at all.

    The moving average is t <- momentum t + (1 - momentum) s with the updated s.

    Args:
        optimizer: has the gradients; a shard without one stays as it is.
        student: all shards by name, also those that are not trained.
        teacher: the shards that follow them, by the same names.
        clip: of `clip_factors`.
        momentum: share of the teacher that stays, 0 to 1.
        finite: 0-dim bool tensor on the device; where it is false nothing changes. It is not read
            by the host.
    """
    numbers = {name: i for i, name in enumerate(optimizer.modules)}
    groups = {shard: group for group in optimizer.adamw.param_groups for shard in group["params"]}
    names = [name for name, shard in optimizer.shards.items() if shard.grad is not None]
    shards = [optimizer.shards[name] for name in names]
    states = [optimizer.state(name) for name in names]
    adamw_update(
        shards,
        [shard.grad for shard in shards if shard.grad is not None],
        *([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")),
        lrs=[groups[shard]["lr"] for shard in shards],
        weight_decays=[groups[shard]["weight_decay"] for shard in shards],
        betas=optimizer.adamw.defaults["betas"],
        eps=optimizer.adamw.defaults["eps"],
        clip_factors=clip,
        modules=[numbers[name.partition(".")[0]] for name in names],
        teachers=[teacher[name] for name in names],
        momentum=momentum,
        finite=finite,
    )
    for name in teacher.keys() - set(names):
        moved = torch.lerp(teacher[name], student[name], 1.0 - momentum)
        teacher[name].copy_(torch.where(finite, moved, teacher[name]))
