from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from franca_fast.data import open_images
from franca_fast.data.openood import read_openood_list
from franca_fast.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lists = tmp_path / "benchmark_imglist"
    for name, text in (
        ("imagenet/test_ninco.txt", "ninco/a b.png -1\r\nninco/c.png -1\n\n"),
        ("imagenet/test_imagenet.txt", "imagenet_1k/val/1.png 3\nimagenet_1k/val/2.png 0"),
        ("imagenet/test_textures.txt", "texture/x.png -1\n"),
        ("imagenet/test_places.txt", "places/x.png -1\n"),
        ("cifar10/test_svhn.txt", "svhn/1.png -1\n"),
        ("imagenet/empty.txt", "\n"),
        ("imagenet/odd.txt", "ninco/c.png -1\nninco/c.png {'label': 3}\n"),
        ("imagenet/absolute.txt", "/etc/c.png -1\n"),
    ):
        (lists / name).parent.mkdir(parents=True, exist_ok=True)
        (lists / name).write_bytes(text.encode())
    for name in (
        *("images_largescale/ninco/a b.png", "images_largescale/ninco/c.png"),
        *("images_largescale/imagenet_1k/val/1.png", "images_largescale/imagenet_1k/val/2.png"),
        *("images_classic/texture/x.png", "images_classic/svhn/1.png"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("test_ninco.txt", "images_largescale", [("ninco/a b.png", -1), ("ninco/c.png", -1)]),
        ("test_textures.txt", "images_classic", [("texture/x.png", -1)]),
        ("cifar10/test_svhn.txt", "images_classic", [("svhn/1.png", -1)]),
    ],
)
def test_lists(root: Path, name: str, folder: str, expected: list[tuple[str, int]]) -> None:
    found = read_openood_list(str(root), name)
    assert found[0] == str(root / folder)
    assert list(zip(*found[1:], strict=True)) == expected


def test_a_list_is_a_source_of_images_with_their_labels(root: Path) -> None:
    labelled = list(open_images(f"OpenOOD:root={root}:list=test_imagenet.txt"))
    assert [(name, label) for name, _, label in labelled] == [
        ("imagenet_1k/val/1.png", 3),
        ("imagenet_1k/val/2.png", 0),
    ]
    unlabelled = list(open_images(f"OpenOOD:list=test_ninco.txt:root={root}"))
    assert [label for *_, label in unlabelled] == [None, None]


def test_a_missing_image_is_counted(root: Path) -> None:
    (root / "images_largescale" / "ninco" / "c.png").unlink()
    images = open_images(f"OpenOOD:root={root}:list=test_ninco.txt")
    assert len(list(images)) == 1
    assert sum(images.skipped.values()) == 1


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("OpenOOD:root={root}", "OpenOOD: no list; accepted: list=NAME"),
        ("OpenOOD:root={root}:list=test_nincoo.txt", "did you mean 'test_ninco.txt'"),
        ("OpenOOD:root={root}:list=cifar7/test.txt", "accepted: a list in"),
        ("OpenOOD:root={root}/images_classic:list=test_ninco.txt", "a folder with benchmark_img"),
        ("OpenOOD:root=/absent:list=test_ninco.txt", "/absent"),
        ("OpenOOD:root={root}:list=empty.txt", "without lines"),
        ("OpenOOD:root={root}:list=odd.txt", "line 2; accepted: a path and a label"),
        ("OpenOOD:root={root}:list=absolute.txt", "line 1; accepted: a path and a label"),
        ("OpenOOD:root={root}:list=test_places.txt", "whose first image 'places/x.png' is missing"),
    ],
)
def test_what_is_wrong_is_named(root: Path, source: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        open_images(source.format(root=root))
