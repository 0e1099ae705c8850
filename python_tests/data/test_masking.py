from __future__ import annotations

import pytest
import torch
from torch import Tensor

from franca_fast.data import BlockMask, CyclicMask, InverseBlockMask, MaskSettings, RandomMask
from franca_fast.data.masking import Mask, build_mask, sample_masks
from franca_fast.errors import InputError

ALL_KINDS = [CyclicMask, InverseBlockMask, BlockMask, RandomMask]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def is_row_major_block(mask: Tensor) -> bool:
    """Whether the true patches fill some rectangle in row-major order."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    flat = mask[top:bottom, left:right].flatten()
    area = int(mask.sum())
    return bool(flat[:area].all()) and area > (bottom - top - 1) * (right - left)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("grid", [(16, 16), (7, 12), (1, 9), (9, 1), (2, 2)])
def test_exactly_the_number_asked_for(kind: type[Mask], grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    numbers = list(range(patches)) * 5
    masks = kind(grid)(numbers, generator())
    assert masks.shape == (len(numbers), *grid) and masks.dtype == torch.bool
    assert masks.sum((1, 2)).tolist() == numbers


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_one_number_gives_one_mask_and_the_generator_decides(kind: type[Mask]) -> None:
    mask = kind(12)
    first, second = mask(60, generator()), mask(60, generator())
    assert first.shape == (12, 12)
    assert torch.equal(first, second)
    used = generator()
    mask(60, used)
    assert not torch.equal(mask(60, used), first)


@pytest.mark.parametrize("kind", [CyclicMask, InverseBlockMask])
def test_one_patch_stays_visible(kind: type[Mask]) -> None:
    assert int(kind(8)(64, generator()).sum()) == 63


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("number", [-1, 65])
def test_numbers_out_of_range_are_refused(kind: type[Mask], number: int) -> None:
    with pytest.raises(InputError, match="from 0 to 64"):
        kind(8)(number, generator())


def test_block_is_a_rectangle_cut_in_row_major_order() -> None:
    masks = BlockMask((10, 14))(list(range(1, 140)) * 3, generator())
    assert all(is_row_major_block(mask) for mask in masks)


def test_inverse_block_leaves_such_a_block_visible() -> None:
    masks = InverseBlockMask((10, 14))(list(range(1, 139)) * 3, generator())
    assert all(is_row_major_block(~mask) for mask in masks)


def test_cyclic_mask_is_a_shifted_inverse_block() -> None:
    for mask in CyclicMask((6, 9))(list(range(1, 54, 4)) * 3, generator()):
        shifts = [(y, x) for y in range(6) for x in range(9)]
        assert any(is_row_major_block(~mask.roll(shift, (0, 1))) for shift in shifts)


def test_the_aspects_of_blocks_span_the_limits() -> None:
    masks = BlockMask(40)([100] * 2000, generator())
    height = masks.any(2).sum(1).double()
    width = masks.any(1).sum(1).double()
    # ceil(sqrt(100 * 0.3)) = 6 rows or columns; as many others as 100 patches then need
    assert [int(height.min()), int(width.min())] == [6, 6]
    assert [int(height.max()), int(width.max())] == [17, 19]
    assert abs(float((height / width).log().mean())) < 0.1  # uniform in the logarithm


def test_cyclic_mask_hides_every_patch_equally_often_and_inverse_block_does_not() -> None:
    n, share = 6000, 0.5
    deviation = (share * (1 - share) / n) ** 0.5
    cyclic = CyclicMask(12)([72] * n, generator()).double().mean(0)
    assert float((cyclic - share).abs().max()) < 5 * deviation
    inverse = InverseBlockMask(12)([72] * n, generator()).double().mean(0)
    centre, corners = inverse[5:7, 5:7].mean(), inverse[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert float(corners - centre) > 0.5


def test_random_mask_has_no_bias_either() -> None:
    share = RandomMask(8)([16] * 6000, generator()).double().mean(0)
    assert float((share - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 6000) ** 0.5


def test_masks_of_a_batch_take_ratios_in_equal_steps() -> None:
    settings = MaskSettings(mask_sample_probability=0.5, mask_ratio_min_max=(0.1, 0.65))
    masks = sample_masks(CyclicMask(16), settings, seed=0, draw=640, batch_size=32)
    assert masks.shape == (64, 256)
    counts = masks.sum(1)
    ratios = counts[counts > 0].sort().values / 256
    assert len(ratios) == 32
    steps = torch.linspace(0.1, 0.65, 33)
    assert bool((ratios >= steps[:-1] - 1 / 256).all() and (ratios <= steps[1:]).all())


def test_which_crops_are_masked_is_random() -> None:
    settings = MaskSettings()
    masked = torch.stack(
        [
            sample_masks(RandomMask(4), settings, seed=0, draw=8 * i, batch_size=8).any(1)
            for i in range(400)
        ]
    )
    assert float((masked.double().mean(0) - 0.5).abs().max()) < 5 * (0.25 / 400) ** 0.5


@pytest.mark.parametrize(("probability", "masked"), [(0.0, 0), (1.0, 12), (0.3, 3)])
def test_share_of_masked_crops(probability: float, masked: int) -> None:
    settings = MaskSettings(mask_sample_probability=probability)
    masks = sample_masks(CyclicMask(4), settings, seed=1, draw=0, batch_size=6)
    assert int(masks.any(1).sum()) == masked


def test_ranks_share_the_masks_of_the_whole_batch() -> None:
    whole = sample_masks(CyclicMask(6), MaskSettings(), seed=2, draw=24, batch_size=12)
    parts = [
        sample_masks(CyclicMask(6), MaskSettings(), 2, 24, 12, rank=rank, world_size=3)
        for rank in range(3)
    ]
    joined = torch.stack([part.view(2, 4, 36) for part in parts], 2).reshape(24, 36)
    assert torch.equal(joined, whole)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cyclic", CyclicMask),
        ("inverse_block", InverseBlockMask),
        ("block", BlockMask),
        ("random", RandomMask),
    ],
)
def test_settings_name_the_mask(kind: str, expected: type[Mask]) -> None:
    assert type(build_mask(MaskSettings(kind=kind), 4)) is expected


def test_a_block_can_be_rolled() -> None:
    rolled = build_mask(MaskSettings(kind="block", roll=True), 9)
    masks = rolled([27] * 3000, generator()).double().mean(0)
    assert float((masks - 1 / 3).abs().max()) < 5 * (2 / 9 / 3000) ** 0.5
