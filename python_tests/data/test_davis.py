from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from franca_fast.data.davis import open_davis
from franca_fast.errors import InputError
from python_tests.data.benchmark_trees import moving_squares, write_davis


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    videos = {"surf": moving_squares(4), "bear": moving_squares(3)}
    return write_davis(tmp_path / "DAVIS", videos)


@pytest.mark.parametrize("above", [False, True])
def test_videos_are_sorted_with_frames_and_masks_in_order(tree: Path, above: bool) -> None:
    videos = open_davis(tree.parent if above else tree)
    assert [video.name for video in videos] == ["bear", "surf"]
    assert [file.stem for file in videos[1].frames] == [f"{t:05d}" for t in range(4)]
    for t, expected in enumerate(moving_squares(4)):
        np.testing.assert_array_equal(videos[1].mask(t, (84, 56)), expected)


def test_split_and_resolution_are_options(tree: Path) -> None:
    (tree / "ImageSets/2017/train.txt").write_text("bear\n")
    for kind in ("JPEGImages", "Annotations"):
        (tree / kind / "480p").rename(tree / kind / "1080p")
    videos = open_davis(f"DAVIS:root={tree}:split=train:resolution=1080p")
    assert [video.name for video in videos] == ["bear"]
    with pytest.raises(InputError, match="without JPEGImages/480p, Annotations/480p; accepted"):
        open_davis(tree)


def test_a_missing_list_sequence_or_mask_is_named(tree: Path) -> None:
    (tree / "Annotations/480p/surf/00002.png").unlink()
    with pytest.raises(InputError, match="'surf': no mask for 1 of 4 frames, '00002' first"):
        open_davis(tree)
    (tree / "ImageSets/2017/val.txt").write_text("horse\n")
    with pytest.raises(InputError, match=r"480p/horse': no such file or folder"):
        open_davis(tree)
    (tree / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(InputError, match=r"without ImageSets/2017/val\.txt"):
        open_davis(tree)


def test_two_frames_are_too_few(tree: Path) -> None:
    (tree / "JPEGImages/480p/bear/00001.jpg").unlink()
    with pytest.raises(InputError, match="'bear': 2 frames; accepted: 3 or more"):
        open_davis(tree)


def test_a_mask_of_another_size_or_with_colours_is_refused(tree: Path) -> None:
    video = open_davis(tree)[0]
    with pytest.raises(InputError, match=r"84 x 56 pixels; accepted: the size of its frame, 84 x "):
        video.mask(0, (84, 57))
    Image.new("RGB", (84, 56)).save(video.masks[1])
    with pytest.raises(InputError, match="mode RGB"):
        video.mask(1, (84, 56))
    Image.fromarray(np.full((56, 84), 300, np.uint16)).save(video.masks[2])
    with pytest.raises(InputError, match="the value 300; accepted: 0 to 254 for objects"):
        video.mask(2, (84, 56))
