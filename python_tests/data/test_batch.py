from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from franca_fast.data import CropSettings, MaskSettings, open_source
from franca_fast.data import batch as batch_module
from franca_fast.data.batch import BatchMaker, BatchPlan
from franca_fast.data.decoding import DecodeSettings
from franca_fast.data.pixels.levels import NARROW
from franca_fast.data.stream import SampleStream
from python_tests.data.deep_files import png_file
from python_tests.data.files import png, tar_bytes, write_shards
from python_tests.data.test_loader import build

PLAN = BatchPlan(
    batch_size=4,
    crops=CropSettings(global_crops_size=16, local_crops_size=8, local_crops_number=3),
    masking=MaskSettings(),
    patch_size=4,
    seed=0,
    rank=0,
    world_size=1,
    decoding=DecodeSettings(10_000),
    photometric_here=True,
)


@pytest.fixture
def stream(tmp_path: Path) -> SampleStream:
    return SampleStream(open_source(write_shards(tmp_path, 2, 10)), seed=0)


def test_shapes_and_types(stream: SampleStream) -> None:
    batch = BatchMaker(PLAN)[stream.take(4)].batch
    assert batch.global_crops.shape == (8, 3, 16, 16)
    assert batch.local_crops is not None and batch.local_crops.shape == (12, 3, 8, 8)
    assert batch.global_crops.dtype == batch.local_crops.dtype == torch.float32
    assert batch.masks.shape == (8, 16) and batch.masks.dtype == torch.bool
    assert len(batch.keys) == 4


def test_indices_and_weights_of_masked_patches(stream: SampleStream) -> None:
    batch = BatchMaker(PLAN)[stream.take(4)].batch
    assert int(batch.masks.any(1).sum()) == 4
    torch.testing.assert_close(batch.mask_indices, batch.masks.flatten().nonzero().flatten())
    assert batch.mask_weights.dtype == torch.float32
    rows = batch.mask_indices // 16
    sums = torch.zeros(8).index_add(0, rows, batch.mask_weights)
    torch.testing.assert_close(sums, batch.masks.any(1).float())


def test_no_masks_and_no_local_crops(stream: SampleStream) -> None:
    crops = CropSettings(global_crops_size=16, local_crops_number=0)
    plan = replace(PLAN, crops=crops, masking=MaskSettings(mask_sample_probability=0))
    batch = BatchMaker(plan)[stream.take(4)].batch
    assert batch.local_crops is None
    assert len(batch.mask_indices) == len(batch.mask_weights) == 0
    assert batch.mask_indices.dtype == torch.int64


def test_crops_are_crop_major(stream: SampleStream) -> None:
    draw = stream.take(4)
    batch = BatchMaker(PLAN)[draw].batch
    for i in range(4):
        alone = replace(draw, numbers=draw.numbers[i : i + 1], refs=draw.refs[i : i + 1])
        one = BatchMaker(replace(PLAN, batch_size=1))[alone].batch
        torch.testing.assert_close(one.global_crops, batch.global_crops[i::4])
        assert one.local_crops is not None and batch.local_crops is not None
        torch.testing.assert_close(one.local_crops, batch.local_crops[i::4])


def test_the_two_global_crops_differ(stream: SampleStream) -> None:
    batch = BatchMaker(PLAN)[stream.take(4)].batch
    difference = (batch.global_crops[:4] - batch.global_crops[4:]).abs().flatten(1).amax(1)
    assert float(difference.min()) > 0.1


def test_the_same_sample_gets_other_crops_later(stream: SampleStream) -> None:
    draw, later = stream.take(4), stream.take(4)
    again = replace(later, refs=draw.refs)
    first, second = BatchMaker(PLAN)[draw].batch, BatchMaker(PLAN)[again].batch
    assert first.keys == second.keys
    assert not torch.equal(first.global_crops, second.global_crops)
    assert not torch.equal(first.masks, second.masks)


def test_a_spare_takes_the_place_of_a_bad_sample(stream: SampleStream) -> None:
    draw = stream.take(4, spares=4)
    bad = draw.refs[1]._replace(data=b"nothing")
    spares = [*draw.spares]
    spares[1] = spares[1]._replace(data=b"")  # the first that is tried for the second sample
    broken = replace(draw, refs=[draw.refs[0], bad, *draw.refs[2:]], spares=spares)
    made = BatchMaker(PLAN)[broken]
    assert made.batch.keys == [
        draw.refs[0].name,
        draw.spares[2].name,
        draw.refs[2].name,
        draw.refs[3].name,
    ]
    [sample] = made.bad  # the bad spare is counted when its own turn comes
    assert sample.reason == "not an image" and sample.location.endswith(f":{bad.name}")
    expected = BatchMaker(PLAN)[replace(draw, refs=[draw.refs[0], draw.spares[2], *draw.refs[2:]])]
    torch.testing.assert_close(made.batch.global_crops, expected.batch.global_crops)


def test_without_enough_spares_the_batch_says_so(stream: SampleStream) -> None:
    draw = stream.take(4, spares=1)
    broken = replace(
        draw,
        refs=[ref._replace(data=b"x") for ref in draw.refs],
        spares=[ref._replace(data=b"x") for ref in draw.spares],
    )
    made = BatchMaker(PLAN)[broken]
    assert made.unfilled == 4 and len(made.bad) == 4


def test_large_images_are_skipped_undecoded(stream: SampleStream) -> None:
    made = BatchMaker(replace(PLAN, decoding=DecodeSettings(100)))[stream.take(4)]
    assert {sample.reason for sample in made.bad} == {"too many pixels"}


def test_finishing_later_gives_the_same(stream: SampleStream) -> None:
    draw = stream.take(4)
    here = BatchMaker(PLAN)[draw]
    made = BatchMaker(replace(PLAN, photometric_here=False))[draw]
    assert made.batch.global_crops.dtype == torch.uint8
    later = made.finish(PLAN.crops)
    assert torch.equal(later.global_crops, here.batch.global_crops)
    assert later.local_crops is not None and here.batch.local_crops is not None
    assert torch.equal(later.local_crops, here.batch.local_crops)


def test_moving_to_a_device_moves_every_tensor(stream: SampleStream) -> None:
    batch = BatchMaker(PLAN)[stream.take(4)].batch.to("meta")
    tensors = [value for value in vars(batch).values() if torch.is_tensor(value)]
    assert len(tensors) == 5 and all(tensor.is_meta for tensor in tensors)
    assert len(batch.keys) == 4


def _finish_on_the_gpu(pattern: str) -> None:
    everything = replace(
        PLAN.crops,
        jitter_probability=1.0,
        greyscale_probability=1.0,
        blur_probability_local=1.0,
        blur_probability_global=(1.0, 1.0),
        solarize_probability_global=(1.0, 1.0),
    )
    plan = replace(PLAN, crops=everything, photometric_here=False)
    made = BatchMaker(plan)[SampleStream(open_source(pattern), seed=0).take(4)].pin_memory()
    made.batch = made.batch.to("cuda", non_blocking=True)
    batch = made.finish(plan.crops)
    for crops, shape in ((batch.global_crops, (8, 3, 16, 16)), (batch.local_crops, (12, 3, 8, 8))):
        assert crops is not None and (crops.device.type, crops.shape) == ("cuda", shape)


def test_colours_change_on_a_gpu_without_a_wait(
    fake_gpu: Callable[..., Any], tmp_path: Path
) -> None:
    assert fake_gpu(_finish_on_the_gpu, write_shards(tmp_path, 2, 10)) == {}


def test_odd_images_are_used_and_remarked_on(stream: SampleStream) -> None:
    draw = stream.take(4)
    dark = draw.refs[2]._replace(data=png_file(np.full((8, 8), 9, np.uint16)))
    made = BatchMaker(PLAN)[replace(draw, refs=[*draw.refs[:2], dark, draw.refs[3]])]
    assert [(r.location, r.reason) for r in made.remarks] == [
        (dark.location, NARROW)
    ] and not made.bad
    plan = replace(PLAN, decoding=DecodeSettings(levels="0:9"))
    made = BatchMaker(plan)[replace(draw, refs=[dark] * 4)]
    assert [(r.location, r.reason) for r in made.remarks] == [(dark.location, NARROW)] * 4


def test_an_image_that_memory_cannot_hold_is_skipped(
    stream: SampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = stream.take(4, spares=4)

    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(batch_module, "read_sample", fail)
    made = BatchMaker(PLAN)[draw]
    assert [bad.reason for bad in made.bad] == ["too large for memory"] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_remarks_reach_the_loader(tmp_path: Path, workers: int) -> None:
    deep = png_file(np.arange(64, dtype=np.uint16).reshape(8, 8))
    members = [(f"{i}.png", deep if i % 2 else png(i)) for i in range(8)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    with build(tmp_path / "s.tar", batch_size=8, num_workers=workers) as loader:
        assert next(loader).account.remarks == {NARROW: 4}
        assert next(loader).account.remarks == {NARROW: 4}
        assert loader.account.remarks == {NARROW: 8} and loader.account.adds_up
    with build(tmp_path / "s.tar", batch_size=8, levels="minmax") as loader:
        assert next(loader).account.remarks == {}
