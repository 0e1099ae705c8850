"""Scenes of garments: the same bits everywhere, and masks that are the garments' own."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from franca_fast.data.fashion_scenes import (
    _NOISE,
    CLASS_NAMES,
    FashionScenes,
    _filled,
    _garments,
    _ground,
    _place,
    _warped,
    fashion_scenes,
)
from franca_fast.errors import InputError

CENTRE = np.array([0.5, 0.5])
SMALL, LARGE, UPRIGHT, TURNED, PLAIN, MIRRORED = 0.0, 0.9999, 0.5, 0.9999, 0.9, 0.1


@pytest.fixture(scope="module")
def scenes() -> FashionScenes:
    return fashion_scenes("train")


def digest(*scene: object) -> str:
    return hashlib.sha256(
        b"".join(np.asarray(part).astype(np.uint8).tobytes() for part in scene)
    ).hexdigest()[:16]


def test_the_bits_are_these():
    assert digest(*fashion_scenes("TRAIN").load(0)) == "2446021a645bb78a"
    assert digest(*fashion_scenes("test", seed=3).load(99)) == "e726e38a60686fa6"


def test_a_scene_depends_on_seed_split_and_number_alone(scenes):
    numbers = [0, 7, 3, 7, 199]
    again = fashion_scenes("train")
    with ThreadPoolExecutor(2) as threads:
        together = [digest(*scene) for scene in threads.map(scenes.load, numbers)]
    alone = [digest(*again.load(number)) for number in reversed(numbers)]
    assert together == alone[::-1]
    others = [fashion_scenes("train", seed=1).load(0), fashion_scenes("test").load(0)]
    assert len({*together, *(digest(*scene) for scene in others)}) == 6


def test_what_a_set_of_scenes_says_of_itself(scenes):
    test = fashion_scenes("TEST")
    assert (len(scenes), len(test)) == (200, 100)
    assert scenes.names[7] == "train-007" and len(set(scenes.names + test.names)) == 300
    assert scenes.class_names == list(CLASS_NAMES) and scenes.n_classes == 11
    assert scenes.ignore is None
    image, mask = scenes.load(1)
    assert (image.mode, image.size) == ("RGB", (112, 112))
    assert (mask.dtype, mask.shape) == (np.int64, (112, 112))


def test_every_class_occurs_and_none_is_rare(scenes):
    masks = np.stack([scenes.load(i)[1] for i in range(150)])
    shares = np.bincount(masks.ravel(), minlength=11) / masks.size
    assert len(shares) == 11 and 0.5 < shares[0] < 0.85 and shares[1:].min() > 0.01
    labels = [len(np.unique(mask)) - 1 for mask in masks]
    assert min(labels) >= 1 and 3 <= max(labels) <= 5


def test_splits_show_the_images_of_their_own():
    counts = [len(_garments(split)[0]) for split in ("train", "test")]
    assert counts == [6000, 1000]


@pytest.mark.parametrize("which", [PLAIN, MIRRORED])
def test_an_upright_garment_of_its_own_size_keeps_its_outline(which):
    images, _ = _garments("test")
    for image in images[:40]:
        shade, cover = _warped(image, CENTRE, np.array([SMALL, UPRIGHT, which]))
        expected = _filled(np.pad(image, 42) >= 12)
        expected = expected[:, ::-1] if which == MIRRORED else expected
        assert ((np.asarray(cover) >= 128) == expected).mean() > 0.998  # corners are rounded
        grey = np.pad(image, 42)[:, :: 1 if which == PLAIN else -1].astype(float)
        assert np.corrcoef(np.asarray(shade).ravel(), grey.ravel())[0, 1] > 0.98


def test_a_turned_garment_is_the_rotation_of_the_outline():
    images, _ = _garments("test")
    angle, zoom = 2 * np.arctan(0.27), 64 / 28
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # of y, x
    for image in images[:20]:
        _, cover = _warped(image, np.array([0.4, 0.6]), np.array([LARGE, TURNED, PLAIN]))
        outline = _filled(np.pad(image, 2) >= 12).astype(float)
        centre = np.array([0.6, 0.4]) * 112 - 0.5
        matrix = turn / zoom
        offset = np.array([15.5, 15.5]) - matrix @ centre
        expected = ndimage.affine_transform(outline, matrix, offset, (112, 112), order=1) > 0.5
        found = np.asarray(cover) >= 128
        assert (found & expected).sum() > 0.97 * (found | expected).sum()


def test_an_outline_is_closed_and_filled():
    generator = np.random.default_rng(0)
    cross = ndimage.generate_binary_structure(2, 1)
    for share in (0.1, 0.3, 0.5):
        inside = np.pad(generator.random((24, 24)) < share, 2)
        expected = ndimage.binary_fill_holes(ndimage.binary_closing(inside, cross))
        np.testing.assert_array_equal(_filled(inside), expected)


def test_a_mask_marks_what_is_not_ground(scenes):
    for index in range(5):
        image, mask = scenes.load(index)
        cells = scenes._numbers(index, 0, 1 + sum(3 * h * w for (h, w), _ in _NOISE))[1:]
        same = (np.asarray(image) == np.asarray(_ground(cells))).all(2)
        assert same[mask == 0].mean() > 0.95 and same[mask > 0].mean() < 0.01


def test_the_loneliest_place_is_taken():
    numbers = np.array([0.1, 0.1, 0.9, 0.9, 0.5, 0.5, 0.2, 0.3])
    np.testing.assert_allclose(_place(numbers, []), [0.22, 0.22])
    np.testing.assert_allclose(_place(numbers, [np.array([0.2, 0.2])]), [0.78, 0.78])


def test_what_there_is_not(scenes):
    with pytest.raises(InputError, match=r"split: trian \(.*'train'\?\); accepted: train"):
        fashion_scenes("trian")
    for index in (-1, 200):
        with pytest.raises(IndexError):
            scenes.load(index)
