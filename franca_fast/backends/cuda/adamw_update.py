"""AdamW and the teacher's average as CUDA kernels, 64 tensors in a launch."""

from __future__ import annotations

from franca_fast import _C
from franca_fast.backends._core import adamw_arguments
from franca_fast.backends.contracts import AdamWProblem
from franca_fast.backends.cuda._device import on_device_of, stream_of, workspace


def update(problem: AdamWProblem) -> None:
    like = problem.parameters[0]
    with on_device_of(like):
        memory = workspace(_C.cuda.adamw_workspace(len(problem.parameters)), like.device)
        _C.cuda.adamw_update(
            adamw_arguments(problem), memory.data_ptr(), memory.numel(), stream_of(like)
        )
