from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.data import eval_transform
from franca_fast.data.decoding import DecodeSettings
from franca_fast.data.pixels.levels import NARROW
from franca_fast.errors import InputError
from franca_fast.rasa.image_crops import ImageCrops
from python_tests.data.deep_files import png_file
from python_tests.data.files import memory_taken


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of different colours, the third of which is damaged."""
    for i in range(7):
        Image.new("RGB", (40, 30), (30 * i, 0, 255)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    return tmp_path


def collect(crops: ImageCrops, numbers, size) -> dict[int, torch.Tensor]:
    return {
        i: image
        for part, images in crops.batches(numbers, size)
        for i, image in zip(part, images, strict=True)
    }


def test_crops_of_an_image_depend_on_its_number_alone(folder):
    forwards = collect(ImageCrops(folder, 14), range(7), 3)
    backwards = collect(ImageCrops(folder, 14, num_workers=0), [6, 5, 4, 3, 1, 0], 2)
    assert list(forwards) == [0, 1, 3, 4, 5, 6]
    assert all(torch.equal(forwards[i], backwards[i]) for i in backwards)


def test_seed_changes_crops(tmp_path):
    pixels = torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "noise.png")
    first, second = (collect(ImageCrops(tmp_path, 14, seed=s), [0], 1)[0] for s in (0, 1))
    assert not torch.equal(first, second)


def test_centre_is_what_evaluations_see(folder):
    crops = ImageCrops(folder, 14, "center")
    expected = eval_transform(14)(Image.open(folder / "4.png"))
    assert torch.equal(collect(crops, [4], 1)[4], expected)


def test_random_crops_are_turned_in_all_eight_ways(tmp_path):
    # Grey rises along the rows, and half as fast along the columns; so it tells how a crop lies.
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = Image.fromarray((4 * x + 2 * y).to(torch.uint8).numpy())
    for i in range(64):
        image.save(tmp_path / f"{i:02d}.png")
    seen = set()
    for crop in collect(ImageCrops(tmp_path, 8), range(64), 64).values():
        down, across = (crop[0].diff(dim=dim).mean().item() for dim in (0, 1))
        seen.add((down > 0, across > 0, abs(across) > abs(down)))
    assert len(seen) == 8


def test_unreadable_images_are_left_out_and_counted_once(folder):
    crops = ImageCrops(folder, 14)
    assert len(crops) == 7
    for _ in range(2):
        assert len(collect(crops, range(7), 4)) == 6
    assert dict(crops.account.skipped) == {"not an image": 1}


def test_positions_in_shards_are_found(folder):
    both = ImageCrops(["FashionMNIST:split=TEST", str(folder)], 28, "center")
    alone = ImageCrops(folder, 28, "center")
    assert len(both) == 1007
    assert torch.equal(collect(both, [1000 + 3], 1)[1003], collect(alone, [3], 1)[3])


def test_unknown_kind_is_refused(folder):
    with pytest.raises(InputError, match="did you mean 'random'"):
        ImageCrops(folder, 14, "randm")


@pytest.mark.parametrize("kind", ["random", "center"])
def test_no_shape_takes_much_memory(kind):
    work = f"""
import pathlib, tempfile
from franca_fast.rasa.image_crops import ImageCrops
folder = pathlib.Path(tempfile.mkdtemp())
Image.new("RGB", (9, 9)).save(folder / "a.png")
for i, file in enumerate(FILES):
    (folder / f"{{i}}.png").write_bytes(file.getvalue())
for size in (224, 518):
    crops = ImageCrops(folder, size, "{kind}")
    [(numbers, _)] = crops.batches(range(len(crops)), 9)
    assert len(numbers) == 1 + len(FILES), crops.account.skipped
"""
    assert memory_taken(work) < 64


def test_an_image_that_memory_cannot_hold_is_skipped(folder, monkeypatch):
    crops = ImageCrops(folder, 14, "center")

    def fail(image):
        raise MemoryError

    monkeypatch.setattr(crops, "_transform", fail)
    assert collect(crops, range(7), 7) == {}
    assert crops.account.skipped == {"too large for memory": 6, "not an image": 1}


def test_levels_are_a_setting_and_odd_images_are_counted_once(tmp_path):
    (tmp_path / "a.png").write_bytes(png_file(np.arange(0, 4096, 64, np.uint16).reshape(8, 8)))
    crops = ImageCrops(tmp_path, 8, "center")
    for _ in range(2):
        dark = collect(crops, [0], 1)[0]
    assert crops.account.remarks == {NARROW: 1}
    scaled = ImageCrops(tmp_path, 8, "center", decoding=DecodeSettings(levels="0:4095"))
    assert collect(scaled, [0], 1)[0].max() > dark.max() + 3 and not scaled.account.remarks
