from __future__ import annotations

import pytest
import torch

from franca_fast.evaluation.image import cosine
from franca_fast.evaluation.image.cosine import CosineMemory


def features(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


def compared(memory: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    parts = [block.double() + rest for block, rest in CosineMemory(memory).compared(queries)]
    return torch.cat(parts)


def test_equals_the_definition_in_float64() -> None:
    memory, queries = features(40, 0), 100 * features(7, 1)
    for row, x in zip(compared(memory, queries).tolist(), queries.double(), strict=True):
        for value, y in zip(row, memory.double(), strict=True):
            assert value == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=1e-6)


def test_nearly_equal_features_keep_their_relative_accuracy() -> None:
    common = features(1, 2)
    memory, queries = common + 1e-4 * features(40, 0), common + 1e-4 * features(7, 1)
    exact = torch.nn.functional.normalize(queries.double(), dim=1) @ (
        torch.nn.functional.normalize(memory.double(), dim=1).T
    )
    distances = 1 - exact  # about 1e-8, which float32 cosines cannot tell apart
    assert torch.allclose(1 - compared(memory, queries), distances, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["_SIMILARITIES_AT_ONCE", "_NUMBERS_AT_ONCE"])
def test_blocks_change_nothing_but_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, queries = features(40, 0), features(7, 1)
    whole = compared(memory, queries)
    monkeypatch.setattr(cosine, name, 40 * 3)
    assert torch.allclose(compared(memory, queries), whole, rtol=0, atol=3e-7)


def test_a_row_of_zeros_is_as_far_from_everything() -> None:
    assert compared(torch.eye(3), torch.zeros(1, 3)).tolist() == [[pytest.approx(0.0)] * 3]
