from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from franca_fast.data import Batch, CropSettings, MaskSettings, build_train_loader, multi_crop
from franca_fast.data.pixels.levels import NARROW
from franca_fast.errors import InputError
from python_tests.data.deep_files import png_file
from python_tests.data.files import picture, png, tar_bytes, write_shards

CROPS = CropSettings(global_crops_size=16, local_crops_size=8, local_crops_number=2)


def stage(batch_size: int = 4, **options: Any) -> Any:
    return multi_crop(CROPS, MaskSettings(), patch_size=4, batch_size=batch_size, **options)


def dataset(pattern: str) -> Any:
    return webdataset.WebDataset(pattern, shardshuffle=False)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """Four shards of 6 pictures."""
    return write_shards(tmp_path, 4, 6)


def test_batches_have_the_form_of_the_loaders(pattern: str) -> None:
    options: dict[str, Any] = {"batch_size": 4, "patch_size": 4}
    loader = build_train_loader(pattern, crops=CROPS, masking=MaskSettings(), **options)
    batches = list(dataset(pattern).compose(stage()))
    assert len(batches) == 6
    one, other = batches[0], next(loader)
    for field in fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b)
        if torch.is_tensor(a):
            assert a.dtype == b.dtype
            assert a.shape == b.shape or field.name.startswith("mask_")
    torch.testing.assert_close(one.mask_indices, one.masks.flatten().nonzero().flatten())
    assert int(one.masks.any(1).sum()) == int(other.masks.any(1).sum())
    assert [key for batch in batches for key in batch.keys] == [f"{i:04d}" for i in range(24)]


def test_samples_in_every_form_give_the_same_crops(pattern: str) -> None:
    forms = [
        dataset(pattern),
        dataset(pattern).decode("pil"),
        dataset(pattern).to_tuple("png"),
        dataset(pattern).decode("pil").to_tuple("png", "__key__"),
        [png(i) for i in range(24)],
        [[picture(i)] for i in range(24)],
        [{"seg.png": b"not this", "JPG": png(i), "txt": "x"} for i in range(24)],
    ]
    expected = list(forms[0].compose(stage()))
    for form in forms[1:]:
        found = list(stage()(form))
        assert len(found) == 6
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.global_crops, other.global_crops)
            assert torch.equal(one.masks, other.masks)
    assert found[1].keys == [f"sample {i}" for i in range(4, 8)]


@pytest.mark.parametrize(
    "sample",
    [np.zeros((8, 8, 3)), torch.zeros(3, 8, 8), "a.png", 7, None, ("a", png(0)), {"png": 1}],
)
def test_samples_in_another_form_are_refused(sample: Any) -> None:
    with pytest.raises(InputError, match=r"sample: its image is \w+; accepted: the bytes"):
        next(stage()([sample] * 4))


def test_bad_images_are_counted_and_the_next_take_their_places(tmp_path: Path) -> None:
    members = [(f"{i}.png", b"bad" if i in (1, 2, 6) else png(i)) for i in range(9)]
    members += [("9.txt", b"no image"), ("91.png", png(91)), ("92.png", png(92))]
    (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    first, second = dataset(str(tmp_path / "s.tar")).compose(stage())
    assert first.keys == ["0", "4", "5", "3"] and first.skipped == {"not an image": 2}
    assert second.keys == ["91", "7", "8", "92"]
    assert second.skipped == {"not an image": 1, "no image": 1}
    assert first.global_crops.isfinite().all()


def test_too_many_bad_images_are_an_error() -> None:
    def samples() -> Iterator[bytes]:
        while True:
            yield b"bad"

    with pytest.raises(InputError, match=r"samples cannot be used, more than 5%"):
        next(stage(max_bad_fraction=0.05)(samples()))


def test_large_images_are_skipped() -> None:
    [batch] = stage(max_image_pixels=400)([picture(0, (30, 30)), *(picture(i) for i in range(4))])
    assert batch.skipped == {"too many pixels": 1}


def test_fewer_samples_than_a_batch_are_an_error(pattern: str) -> None:
    with pytest.raises(InputError, match="batch_size: 25; accepted: at most 24"):
        list(dataset(pattern).compose(stage(25)))
    assert len(list(dataset(pattern).compose(stage(7)))) == 3  # the rest fills no batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0; accepted"),
        ({"max_image_pixels": 0}, "max_image_pixels: 0; accepted"),
        ({"max_bad_fraction": 2}, "max_bad_fraction: 2; accepted"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stage(**options)
    with pytest.raises(InputError, match="16 is not a multiple of the patch size 5"):
        multi_crop(CROPS, MaskSettings(), patch_size=5, batch_size=4)


def test_the_seed_decides_and_each_epoch_differs(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = dataset(pattern).compose(stage(seed=1))
    first, second = list(pipeline), list(pipeline)
    again = dataset(pattern).compose(stage(seed=1))
    assert all(map(same, list(again), first)) and all(map(same, list(again), second))
    other = list(dataset(pattern).compose(stage(seed=2)))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    second_rank = list(stage(seed=1)([{"__key__": f"{i:04d}", "png": png(i)} for i in range(24)]))
    for batches in (second, other, second_rank):
        assert [batch.keys for batch in batches] == [batch.keys for batch in first]
        assert not any(
            torch.equal(one.masks, two.masks) or torch.equal(one.global_crops, two.global_crops)
            for one, two in zip(batches, first, strict=True)
        )


def test_torchs_global_generator_is_left_alone(pattern: str) -> None:
    before = torch.get_rng_state()
    list(dataset(pattern).compose(stage()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_dataloader(tmp_path: Path, method: str) -> None:
    # Both workers read the same pictures, which they must cut in their own ways.
    for i in range(2):
        (tmp_path / f"s-{i}.tar").write_bytes(tar_bytes([(f"{n}.png", png(n)) for n in range(8)]))
    pipeline = dataset(str(tmp_path / "s-{0..1}.tar")).compose(stage())

    def epoch() -> list[Batch]:
        loader = DataLoader(
            pipeline, batch_size=None, num_workers=2, multiprocessing_context=method
        )
        return list(loader)

    torch.manual_seed(0)
    first, second = epoch(), epoch()
    assert len(first) == 4 and first[0].keys == first[1].keys
    crops = [batch.global_crops.numpy().tobytes() for batch in first + second]
    assert len(set(crops)) == 8
    torch.manual_seed(0)
    assert all(map(same, epoch(), first))


def test_odd_images_are_remarked_on_and_levels_are_a_setting() -> None:
    deep = png_file(np.arange(0, 4096, 64, np.uint16).reshape(8, 8))
    [batch] = stage()([deep, *(picture(i) for i in range(3))])
    assert batch.account.remarks == {NARROW: 1} and batch.skipped == {}
    [batch] = stage(levels="0:4095")([deep] * 4)
    assert batch.account.remarks == {}


def test_an_image_that_is_read_comes_before_one_that_is_not() -> None:
    samples = [{"nef": b"raw", "left.png": png(i), "txt": "x"} for i in range(4)]
    [batch] = stage()(samples)
    assert batch.skipped == {}
