"""Number formats of the forward and backward pass, and the scaler that fp16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from franca_fast.config.schema import Config
from franca_fast.errors import InputError
from franca_fast.processor import fast_bfloat16

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """What matrix products run in, on one device.

    Attributes:
        device: where the model is.
        dtype: bfloat16, float16 or float32; parameters are float32 in any case.
        scale_loss: whether the loss is scaled so that fp16 gradients do not underflow.
    """

    device: torch.device
    dtype: torch.dtype
    scale_loss: bool

    def autocast(self) -> AbstractContextManager[None]:
        """Context in which the forward pass runs."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)

    def scaler(self, group: dist.ProcessGroup | None = None) -> torch.amp.GradScaler:
        """A gradient scaler, which does nothing unless `scale_loss`.

        The ranks of `group` see an overflow together, whosever shard of the gradients it is in.
        """
        if group is None or not self.scale_loss:
            return torch.amp.GradScaler(self.device.type, enabled=self.scale_loss)
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(self.device.type, process_group=group)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `train.device` names; of several GPUs the one of this process.

    Args:
        name: auto, cpu, cuda or cuda:<index>.
        local_rank: number of this process on its machine.

    Raises:
        InputError: an unknown device, or one that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"train.device: '{name}'; accepted: auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"train.device: '{name}' is not on this machine; accepted: auto or cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def choose_precision(config: Config, device: torch.device) -> Precision:
    """The precision that `compute_precision` asks for; "auto" depends on the device alone.

    It does not depend on a measurement, so that a run that starts again computes the same bits.
    """
    name = config.compute_precision.autocast
    if name == "auto":
        name = _fastest(device)
    scale = config.compute_precision.grad_scaler and name == "fp16"
    return Precision(device, DTYPES[name], scale)


def describe_choice() -> str:
    """What "auto" chooses on this machine and why, in one line."""
    device = choose_device("auto")
    name = _fastest(device)
    units = "matrix units" if device.type == "cuda" else "instructions (AMX, AVX512_BF16)"
    has = "has" if name == "bf16" else "has no"
    return f"compute_precision.autocast=auto trains in {name}, as {device} {has} {units} for bf16"


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if fast_bfloat16(device) else "fp16"
    return "bf16" if fast_bfloat16(device) else "fp32"
