"""AdamW and the teacher's average in the compiled core: all tensors in one pass over memory."""

from __future__ import annotations

import torch

from franca_fast import _C
from franca_fast.backends._core import adamw_arguments
from franca_fast.backends.contracts import AdamWProblem


def update(problem: AdamWProblem) -> None:
    _C.adamw_update(adamw_arguments(problem), torch.get_num_threads())
