"""What a checkpoint holds: the networks and the optimizer by name, and the random states."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.hub.checkpoint_files import Checkpoint, Part
from franca_fast.training.distributed.parallelize import Layout, local
from franca_fast.training.optimizer import LocalOptimizer
from franca_fast.training.student_teacher import StudentTeacher

_NETWORKS = ("student.", "teacher.")
_OPTIMIZER = "optimizer."


def checkpoint_tensors(
    model: StudentTeacher, optimizer: LocalOptimizer, layout: Layout
) -> dict[str, Part]:
    """What this rank writes: its rows of sharded tensors, and on rank 0 those that are whole."""
    parts: dict[str, Part] = {}
    for name, tensor in _named_tensors(model):
        parts[name] = _part(local(tensor), tensor, layout)
    trained = dict(model.student.named_parameters())
    for name, shard in optimizer.shards.items():
        for key, tensor in optimizer.adamw.state.get(shard, {}).items():
            like = trained[name] if tensor.shape == shard.shape else tensor
            parts[f"{_OPTIMIZER}{key}.{name}"] = _part(tensor, like, layout)
    return {
        name: part
        for name, part in parts.items()
        if (layout.world.is_first if part.n_rows is None else layout.writes_shard)
        and (part.n_rows is None or len(part.rows))
    }


def load_checkpoint(
    checkpoint: Checkpoint, model: StudentTeacher, optimizer: LocalOptimizer, layout: Layout
) -> None:
    """Gives networks and optimizer what a checkpoint holds, from any number of ranks.

    Raises:
        InputError: names or shapes that do not match; nothing was changed.
    """
    shapes = checkpoint.shapes
    wanted = {name: tuple(tensor.shape) for name, tensor in _named_tensors(model)}
    found = {name: shape for name, shape in shapes.items() if not name.startswith(_OPTIMIZER)}
    _require_same(checkpoint, wanted, found)
    trained = dict(model.student.named_parameters())
    states: dict[str, dict[str, str]] = {}
    for key in shapes.keys() - found.keys():
        kind, _, name = key.removeprefix(_OPTIMIZER).partition(".")
        if name not in trained or shapes[key] not in ((), tuple(trained[name].shape)):
            raise InputError(f"optimizer state of '{name}' does not fit the student")
        states.setdefault(name, {})[kind] = key
    with torch.no_grad():
        for name, tensor in _named_tensors(model):
            target = local(tensor)
            target.copy_(checkpoint.read(name, _rows(target, tensor, layout)))
    for name, shard in optimizer.shards.items():
        optimizer.adamw.state[shard] = {
            kind: checkpoint.read(
                key, _rows(shard, trained[name], layout) if shapes[key] else None
            ).to(shard.device)
            for kind, key in sorted(states.get(name, {}).items())
        }
        if name not in states:
            del optimizer.adamw.state[shard]


def _named_tensors(model: StudentTeacher) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers as they lie, by their names in a checkpoint."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        yield (name if name.startswith(_NETWORKS) else f"losses.{name}"), tensor.detach()


def _part(rows: Tensor, whole: Tensor, layout: Layout) -> Part:
    if not _is_sharded(whole):
        return Part(rows)
    return Part(rows, layout.rows(whole.shape[0]).start, whole.shape[0])


def _rows(shard: Tensor, whole: Tensor, layout: Layout) -> slice | None:
    """The rows of the whole tensor that lie in the shard; None for all."""
    if not _is_sharded(whole):
        return None
    rows = layout.rows(whole.shape[0])
    assert rows.stop - rows.start == shard.shape[0], (rows, shard.shape)
    return rows


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def _require_same(
    checkpoint: Checkpoint,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    reasons = [f"missing '{name}'" for name in wanted.keys() - found.keys()]
    reasons += [f"unexpected '{name}'" for name in found.keys() - wanted.keys()]
    reasons += [
        f"'{name}' has shape {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if reasons:
        raise InputError(
            f"the networks do not fit checkpoint '{checkpoint.path}': {', '.join(sorted(reasons))}"
        )


def random_state() -> dict[str, Any]:
    """States of all global random generators, without any object that is not plain."""
    numbers: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            **numbers,
            "state": {**numbers["state"], "key": numbers["state"]["key"].tolist()},
        },
        "python": random.getstate(),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    # A run that moves to a machine with other GPUs cannot restore theirs.
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numbers = state["numpy"]
    key = np.array(numbers["state"]["key"], np.uint32)
    np.random.set_state({**numbers, "state": {**numbers["state"], "key": key}})
    random.setstate(state["python"])
