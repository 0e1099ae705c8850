"""Spreads the networks over the ranks: replicated, or sharded with FSDP2.

The models, the losses and the step know nothing of it but a process group. In order: activation
checkpointing and torch.compile of the blocks, rank 0's weights for all, and shards.

Replicated, every rank holds everything and one all-reduce of all gradients ends the backward pass.
Sharded (`torch.distributed.fsdp.fully_shard`), every block, every set of prototypes and the rest
are units of their own: a rank holds its rows of the parameters, gradients, moments and teacher,
gathers a unit when it is used, and gives its gradient away as soon as it is there. So no rank ever
has the gradients of all prototypes, only those of one nested head at a time. With
`train.shard_ranks` fewer ranks than all share one copy (HSDP), and the copies are averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from franca_fast.config.schema import Config, MixedPrecisionConfig, ShardedModuleConfig
from franca_fast.errors import InputError
from franca_fast.models import VisionTransformer
from franca_fast.training.distributed.world import World
from franca_fast.training.precision import DTYPES, Precision
from franca_fast.training.student_teacher import Network, StudentTeacher

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Up to this many parameters "auto" replicates: weights, gradients, two moments and the teacher
# then take at most 6 GB on each rank.
_REPLICATED_PARAMETERS = 300_000_000


class Layout:
    """Where the parameters of a run lie.

    Args:
        world: the ranks.
        mesh: of the shards; None when every rank holds everything.

    Attributes:
        group: of all ranks; None for one process.
        n_shards: ranks that share one copy.
        shard: which of them this one is.
    """

    def __init__(self, world: World, mesh: DeviceMesh | None = None) -> None:
        self.world, self._mesh = world, mesh
        self.n_shards = 1 if mesh is None else mesh.size(mesh.ndim - 1)
        self.shard = 0 if mesh is None else mesh.get_local_rank(mesh.ndim - 1)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Of all ranks; None for one process."""
        return self.world.group

    @property
    def writes_shard(self) -> bool:
        """Whether this rank writes its shard into a checkpoint, for all ranks with the same."""
        return self.world.rank < self.n_shards

    def rows(self, n_rows: int) -> slice:
        """The rows of a tensor of so many that lie here, when it is sharded."""
        each = -(-n_rows // self.n_shards)
        start = min(n_rows, self.shard * each)
        return slice(start, min(n_rows, start + each))

    def finish_backward(self, student: nn.Module) -> None:
        """Averages the gradients over the ranks where the backward pass has not done so."""
        if self.group is None or self._mesh is not None:
            return
        gradients = []
        for parameter in student.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=self.group)
        flat /= self.world.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients,
            [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)],
        )

    def all_reduce(self, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Reduces figures of a step over the ranks, in one collective.

        Args:
            means: to be averaged, [n].
            squares: sums over this rank's shards, to be summed over one copy, [m].

        Returns:
            both, the same on all ranks.
        """
        if self.group is None:
            return means, squares
        size = self.world.size
        buffer = torch.cat([means / size, squares * (self.n_shards / size)])
        dist.all_reduce(buffer, group=self.group)
        return buffer[: len(means)], buffer[len(means) :]

    def reshard(self, network: nn.Module) -> None:
        """Gives back gathered parameters that no backward pass gives back."""
        if self._mesh is not None:
            from torch.distributed.fsdp import FSDPModule

            for module in network.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def __str__(self) -> str:
        size = self.world.size
        if self._mesh is None:
            return f"{size} ranks, replicated" if size > 1 else "1 process"
        copies = f", {size // self.n_shards} copies" if self.n_shards < size else ""
        return f"{size} ranks, sharded over {self.n_shards}{copies}"


def parallelize(
    model: StudentTeacher, config: Config, world: World, precision: Precision
) -> Layout:
    """Prepares the networks, on their device, for the ranks of a run.

    Args:
        model: student and teacher, on the device.
        config: `train.parallel`, `train.shard_ranks`, `train.activation_checkpointing`,
            `train.compile` and `compute_precision`.
        world: the ranks.
        precision: of the forward pass; gathered parameters need no more.

    Raises:
        InputError: shards that do not fit the number of ranks.
    """
    if config.train.activation_checkpointing:
        _checkpoint_blocks(model.student.backbone)
    if config.train.compile:
        for network in (model.student, model.teacher):
            _compile_blocks(network.backbone)
    world.broadcast([tensor.detach() for tensor in (*model.parameters(), *model.buffers())])
    if not is_sharded(model.student, config, world):
        return Layout(world)
    mesh = _mesh(config, world, precision.device)
    for name, network in (("student", model.student), ("teacher", model.teacher)):
        _shard(network, mesh, getattr(config.compute_precision, name), precision.dtype)
    return Layout(world, mesh)


def is_sharded(student: nn.Module, config: Config, world: World) -> bool:
    """Whether `train.parallel` asks for shards; "auto" does from 300 million parameters on.

    Raises:
        InputError: `train.shard_ranks` without shards.
    """
    chosen = config.train.parallel
    if chosen == "auto":
        count = sum(parameter.numel() for parameter in student.parameters())
        large = count > _REPLICATED_PARAMETERS or config.train.shard_ranks is not None
        chosen = "sharded" if large else "replicated"
    return chosen == "sharded" and world.size > 1


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, or the tensor itself; the memory is shared."""
    if not hasattr(tensor, "to_local"):
        return tensor
    shard: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return shard


def whole(tensor: Tensor) -> Tensor:
    """All rows of a sharded tensor, gathered on every rank, or the tensor itself."""
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach()
    gathered: Tensor = tensor.full_tensor()
    return gathered.detach()


def _checkpoint_blocks(backbone: VisionTransformer) -> None:
    """Recomputes the activations of each block in the backward pass instead of keeping them."""
    # Blocks draw no random numbers: stochastic depth is drawn before them.
    recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    for block in _blocks(backbone):
        block.forward_packed = partial(recomputed, block.forward_packed)


def _compile_blocks(backbone: VisionTransformer) -> None:
    """Compiles the blocks with torch.compile, on their next call."""
    for block in _blocks(backbone):
        block.forward_packed = torch.compile(block.forward_packed)
        block.compile()


def _blocks(backbone: VisionTransformer) -> Iterator[Any]:
    yield from backbone.blocks


def _mesh(config: Config, world: World, device: torch.device) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    n_shards = config.train.shard_ranks or world.size
    if world.size % n_shards:
        raise InputError(
            f"train.shard_ranks: {n_shards}; accepted: a divisor of {world.size}, the number of "
            "ranks"
        )
    if n_shards == world.size:
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (world.size // n_shards, n_shards)
    return init_device_mesh(device.type, shape, mesh_dim_names=("copy", "shard"))


def _shard(network: Network, mesh: DeviceMesh, settings: Any, compute: torch.dtype) -> None:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Nothing here changes an output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    trained = any(parameter.requires_grad for parameter in network.parameters())
    backbone = network.backbone
    arguments = _fsdp_arguments(mesh, settings.backbone, compute, always_free=not trained)
    for block in _blocks(backbone):
        fully_shard(block, **arguments)
        register_fsdp_forward_method(block, "forward_packed")
    fully_shard(backbone, **arguments)
    register_fsdp_forward_method(backbone, "forward_features")
    for name, head in network.heads().items():
        arguments = _fsdp_arguments(mesh, getattr(settings, name), compute)
        for prototypes in head.last_layers:
            # The losses may read them until the backward pass.
            fully_shard(prototypes, **{**arguments, "reshard_after_forward": False})
        fully_shard(head, **arguments)


def _fsdp_arguments(
    mesh: DeviceMesh,
    settings: ShardedModuleConfig,
    compute: torch.dtype,
    *,
    always_free: bool = False,
) -> dict[str, Any]:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    gathered, reduced = transport_dtypes(settings.mixed_precision, compute)
    return {
        "mesh": mesh,
        "reshard_after_forward": always_free or settings.sharding_strategy == "FULL_SHARD",
        # What autocast casts it casts itself; the rest stays as it is.
        "mp_policy": MixedPrecisionPolicy(gathered, reduced, cast_forward_inputs=False),
    }


def transport_dtypes(
    settings: MixedPrecisionConfig, compute: torch.dtype
) -> tuple[torch.dtype, torch.dtype]:
    """Types in which parameters are gathered and gradients are reduced between ranks.

    A 16-bit `param_dtype` means the 16-bit type of the forward pass, as no other could run; a
    16-bit `reduce_dtype` other than that of the forward pass gives way to fp32. With an fp32
    forward pass both are fp32.

    Example:
        >>> transport_dtypes(MixedPrecisionConfig("fp16", "fp16"), torch.bfloat16)
        (torch.bfloat16, torch.float32)
    """
    if compute == torch.float32:
        return compute, compute
    gathered = torch.float32 if settings.param_dtype == "fp32" else compute
    reduced = DTYPES[settings.reduce_dtype]
    return gathered, reduced if reduced == compute else torch.float32


def local_tensors(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """`local` of each tensor that has rows here, by name."""
    shards = ((name, local(tensor)) for name, tensor in named)
    return {name: shard for name, shard in shards if shard.numel()}
