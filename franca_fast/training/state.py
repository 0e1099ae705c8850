"""What a checkpoint holds besides the networks, in plain and named form."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from franca_fast.errors import InputError
from franca_fast.training.student_teacher import StudentTeacher


def networks_state(model: StudentTeacher) -> dict[str, dict[str, Tensor]]:
    """State dicts of "student" and "teacher", and of the "losses" with their centres."""
    losses = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("student.", "teacher."))
    }
    return {
        "student": model.student.state_dict(),
        "teacher": model.teacher.state_dict(),
        "losses": losses,
    }


def load_networks_state(model: StudentTeacher, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Gives the model what `networks_state` returned; every name and shape must match.

    Raises:
        InputError: what does not match.
    """
    whole = dict(state["losses"])
    for network in ("student", "teacher"):
        whole |= {f"{network}.{name}": tensor for name, tensor in state[network].items()}
    try:
        model.load_state_dict(whole)
    except RuntimeError as error:
        raise InputError(f"the networks do not fit: {' '.join(str(error).split())}") from error


def optimizer_state(optimizer: torch.optim.Optimizer, student: nn.Module) -> dict[str, Any]:
    """State of the optimizer under the names of the student's parameters."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in student.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, student: nn.Module, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Gives the optimizer the state that `optimizer_state` returned.

    Raises:
        InputError: state of a parameter that the student lacks, or of another shape.
    """
    parameters = dict(student.named_parameters())
    for name, tensors in state.items():
        parameter = parameters.get(name)
        if parameter is None or tensors["exp_avg"].shape != parameter.shape:
            raise InputError(f"optimizer state of '{name}' does not fit the student")
        optimizer.state[parameter] = {
            key: tensor.detach().clone().to(parameter.device) for key, tensor in tensors.items()
        }


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
