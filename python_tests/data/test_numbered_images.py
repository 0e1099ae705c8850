from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.data.decoding import LazyImage
from franca_fast.data.images import open_images
from franca_fast.data.numbered_images import (
    NumberedImages,
    random_resized_crop,
    rgb,
    shuffled_without_end,
)
from franca_fast.data.transform import normalised
from franca_fast.errors import InputError
from python_tests.data.files import picture, png, tar_bytes, write_folder


def size_of(place: int, image: LazyImage) -> tuple[int, int]:
    return image.size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", ["cat", "dog"], 3)


def test_numbers_are_places_in_the_sources_order_and_labels_are_there_at_once(
    folder: Path, tmp_path: Path
) -> None:
    members = [("x.png", png(7)), ("x.cls", b"dog"), ("y.png", png(8)), ("y.cls", b"emu")]
    (tmp_path / "more.tar").write_bytes(tar_bytes(members))
    sources = [folder, tmp_path / "more.tar"]
    images = NumberedImages(sources)
    expected = list(open_images(sources).labelled())
    assert [images.ref(i).name for i in range(len(images))] == [name for name, _, _ in expected]
    names = [images.class_names[label] for label in images.labels]
    assert names == [label for _, _, label in expected]
    assert images.class_names == ["cat", "dog", "emu"]
    pixels = dict(images.prepared(range(8), lambda _, lazy: np.asarray(rgb(lazy.load()))))
    for i, (_, image, _) in enumerate(expected):
        assert np.array_equal(pixels[i], np.asarray(image))


@pytest.mark.parametrize(("num_workers", "ahead"), [(0, 0), (1, 1), (3, 5)])
def test_threads_change_nothing(folder: Path, num_workers: int, ahead: int) -> None:
    images, numbers = NumberedImages(folder), [4, 0, 4, 5, 1, 1]

    def prepare(place: int, lazy: LazyImage) -> tuple[int, bytes]:
        return place, lazy.load().tobytes()

    found = list(images.prepared(numbers, prepare, num_workers, ahead))
    assert [(i, place) for i, (place, _) in found] == list(zip(numbers, range(6), strict=True))
    assert found == list(images.prepared(numbers, prepare))


def test_bad_images_are_left_out_and_counted_once(folder: Path) -> None:
    (folder / "cat" / "1.png").write_text("no image")
    images = NumberedImages(folder)
    for _ in range(2):
        assert [i for i, _ in images.prepared([1, 0, 1, 2], size_of)] == [0, 2]
    assert dict(images.account.skipped) == {"not an image": 1}
    assert (images.account.found, images.account.used) == (6, 2)
    assert len(list(images.prepared(range(6), size_of))) == 5
    assert images.account.adds_up


def test_bad_images_at_the_end_of_an_order_and_the_beginning_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    Image.new("RGB", (3, 2)).save(tmp_path / "good.png")
    images = NumberedImages(tmp_path)
    assert [i for i, _ in images.prepared([1, 0, 0, 1], size_of)] == [1, 1]
    with pytest.raises(InputError, match="no readable image"):  # also where they went away
        list(images.prepared([1, *[0] * 9], size_of))


def test_nothing_but_bad_images_ends_even_an_endless_sequence(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no image")
    images = NumberedImages(tmp_path)
    with pytest.raises(InputError, match=r"no readable image, such as .*: 2 skipped"):
        list(images.prepared(shuffled_without_end(2, 0), size_of, 2, 2))


def test_the_order_is_another_in_each_epoch_and_for_each_seed() -> None:
    def epochs(seed: int) -> list[list[int]]:
        numbers = list(islice(shuffled_without_end(20, seed), 60))
        return [numbers[:20], numbers[20:40], numbers[40:]]

    assert all(sorted(epoch) == list(range(20)) for epoch in epochs(0))
    assert epochs(0) == epochs(0)
    assert len({tuple(epoch) for seed in (0, 1) for epoch in epochs(seed)}) == 6


def test_crops_are_parts_of_the_image_that_depend_on_seed_and_place_alone() -> None:
    crop = random_resized_crop(16, (0.08, 1.0), 3)

    def of(place: int) -> torch.Tensor:
        return crop(place, LazyImage(picture(0, (40, 30))))

    assert torch.equal(of(5), of(5)) and not torch.equal(of(5), of(6))
    other = random_resized_crop(16, (0.08, 1.0), 4)
    assert not torch.equal(of(5), other(5, LazyImage(picture(0, (40, 30)))))


def ramp(size: tuple[int, int]) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    width, height = size
    levels = np.zeros((height, width, 3), np.uint8)
    levels[..., 0] = np.linspace(0, 255, width)
    levels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(levels)


def test_areas_aspects_and_flips_are_those_of_the_protocol() -> None:
    crop, image = random_resized_crop(16, (0.08, 1.0), 0), ramp((256, 256))
    black, white = (normalised(Image.new("RGB", (1, 1), (v,) * 3))[:, 0, 0] for v in (0, 255))
    areas, aspects, flips = [], [], []
    for place in range(400):
        pixels = crop(place, LazyImage(image))
        shares = (pixels - black[:, None, None]) / (white - black)[:, None, None]
        # Over 16 pixels there are 15 steps of one sixteenth of the region.
        width = (shares[0, :, 15] - shares[0, :, 0]).mean().item() * 16 / 15
        height = (shares[1, 15] - shares[1, 0]).mean().item() * 16 / 15
        flips.append(width < 0)
        areas.append(abs(width) * height)
        aspects.append(abs(width) / height)
    assert min(areas) > 0.07 and max(areas) < 1.05
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)  # a little below (0.08 + 1) / 2
    assert min(aspects) > 0.72 and max(aspects) < 1.39
    assert np.mean(np.log(aspects)) == pytest.approx(0, abs=0.03)
    assert np.mean(flips) == pytest.approx(0.5, abs=0.07)


def test_a_large_jpeg_gives_nearly_the_crop_of_its_pixels(tmp_path: Path) -> None:
    picture(1, (640, 480)).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    whole = LazyImage(data).load()
    crop = random_resized_crop(16, (0.5, 1.0), 0)
    reduced, full = crop(0, LazyImage(data)), crop(0, LazyImage(whole))
    assert 0 < (reduced - full).abs().max() < 0.1


def test_grey_images_become_colours(tmp_path: Path) -> None:
    assert random_resized_crop(8, (0.5, 1.0), 0)(0, LazyImage(Image.new("L", (9, 9)))).shape == (
        3,
        8,
        8,
    )
