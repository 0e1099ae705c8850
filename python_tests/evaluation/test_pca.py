from __future__ import annotations

import errno
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.errors import InputError, OutputError
from franca_fast.evaluation import pca as module
from franca_fast.evaluation import visualize_pca
from franca_fast.evaluation.pca import as_seen, pca_colours, pca_pictures, picture_name
from franca_fast.models import VisionTransformer


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in [("a", "red"), ("b", "green"), ("c", "blue")]:
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


def test_components_are_those_of_the_covariance() -> None:
    tokens = torch.randn(3, 4, 5, 8) @ torch.diag(torch.arange(1.0, 9.0))
    flat = tokens.reshape(-1, 8).double()
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    colours = pca_colours(tokens).reshape(-1, 3).double()
    for i in range(3):
        projected = flat @ directions[i]
        inside = (colours[:, i] > 0) & (colours[:, i] < 255)
        pair = torch.stack([projected[inside], colours[inside, i]])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.9999


def test_colours_span_the_range() -> None:
    colours = pca_colours(torch.randn(2, 16, 16, 6))
    assert colours.amin((0, 1, 2)).tolist() == [0, 0, 0]
    assert colours.amax((0, 1, 2)).tolist() == [255, 255, 255]


def test_signs_are_fixed() -> None:
    tokens = torch.randn(1, 6, 6, 5)
    assert torch.equal(pca_colours(tokens), pca_colours(tokens.clone()))
    shifted = pca_colours(tokens + 3.0).int() - pca_colours(tokens).int()
    assert shifted.abs().max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tokens_that_are_not_finite_are_refused(value: float) -> None:
    tokens = torch.randn(3, 4, 4, 6)
    tokens[1, 2, 3, 4] = value
    with pytest.raises(InputError, match="patch tokens: not finite for 1 of 3 images"):
        pca_colours(tokens)


@pytest.mark.parametrize("tokens", [torch.ones(1, 2, 2, 4), torch.randn(1, 2, 2, 1)])
def test_tokens_without_three_components(tokens: torch.Tensor) -> None:
    assert pca_colours(tokens).shape == (1, 2, 2, 3)


def test_one_pixel_per_patch_and_the_model_s_size(model: VisionTransformer) -> None:
    pictures = pca_pictures(model, [Image.new("RGB", (90, 60), "red")] * 2, 35)
    assert [picture.size for picture in pictures] == [(5, 5), (5, 5)]


def test_image_as_the_model_sees_it() -> None:
    seen = as_seen(Image.new("RGB", (50, 40), (200, 10, 99)), 28)
    assert seen.size == (28, 28)
    assert seen.getpixel((14, 14)) == (200, 10, 99)


def test_one_picture_per_image(model: VisionTransformer, images: Path, tmp_path: Path) -> None:
    paths = visualize_pca(model, images, tmp_path / "out")
    assert [path.name for path in paths] == ["000_a.png", "001_b.png", "002_c.png"]
    assert sorted((tmp_path / "out").iterdir()) == paths
    pixels = np.asarray(Image.open(paths[0]).convert("RGB"))
    ys, xs = (pixels == (255, 0, 0)).all(-1).nonzero()  # the image, at the left
    assert xs.max() < pixels.shape[1] / 2 and min(np.ptp(xs), np.ptp(ys)) > 400
    assert (pixels[ys.min() : ys.max(), pixels.shape[1] // 2 + 40] != 255).any(-1).all()


def test_without_matplotlib_nothing_is_read(
    model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"franca-fast\[plots\]"):
        visualize_pca(model, tmp_path / "absent", tmp_path / "out")


def test_limit(model: VisionTransformer, images: Path, tmp_path: Path) -> None:
    assert len(visualize_pca(model, images, tmp_path / "out", limit=2)) == 2


def test_folder_in_use_is_kept(model: VisionTransformer, images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in use"):
        visualize_pca(model, images, images)
    assert len(list(images.iterdir())) == 3


def test_nothing_is_made_when_no_image_is_readable(
    model: VisionTransformer, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(InputError, match="no readable image"):
        visualize_pca(model, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encoder_without_patches_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no patch tokens"):
        visualize_pca(lambda x: x.mean((2, 3)), images, tmp_path / "out")


LONG = ["n" * 246 + ".png", "\u00fc" * 123 + ".png", "\u65e5" * 82 + ".png"]  # 250 bytes
ODD = ["a\nb.png", "b$x^{$.png", "caf\udce9.png", " .png", "a b..png"]


@pytest.mark.parametrize("names", [LONG, ODD])
def test_pictures_of_images_with_any_name(
    model: VisionTransformer, images: Path, tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / "named").mkdir(exist_ok=True)
        (tmp_path / "named" / name).write_bytes((images / "a.png").read_bytes())
    paths = visualize_pca(model, [tmp_path / "named" / name for name in names], tmp_path / "out")
    assert len({path for path in paths if path.is_file()}) == len(names)


def test_names_of_pictures_are_unique_short_and_printable() -> None:
    draw = random.Random(0)
    letters = [
        "a",
        " ",
        ".",
        "/",
        "\n",
        "\0",
        "\u202e",
        "\u00fc",
        "\u65e5",
        "\udce9",
        "\ud800",
        "$",
    ]
    given = ["", ".", "..", "a/b.png", "c/b.png"]
    given += ["".join(draw.choices(letters, k=draw.randrange(400))) for _ in range(300)]
    for n_bytes in (255, 143):
        names = [picture_name(i, name, n_bytes) for i, name in enumerate(given)]
        assert len(set(names)) == len(given)
        for i, name in enumerate(names):
            assert name.startswith(f"{i:03d}_") and name.endswith(".png")
            assert name.isprintable() and "/" not in name
            assert len(os.fsencode(name)) <= n_bytes
    assert picture_name(7, "dogs/rex.jpeg") == "007_rex.png"
    assert picture_name(0, LONG[1]) == "000_" + "\u00fc" * 123 + ".png"


@pytest.mark.parametrize("written", [0, 2])
def test_pictures_that_are_written_stay_and_are_counted(
    model: VisionTransformer, images: Path, tmp_path: Path, monkeypatch, written: int
) -> None:
    def fill(figure: object, path: Path) -> None:
        if path.name.startswith(f"{written:03d}"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_png(figure, path)

    save_png = module.save_png
    monkeypatch.setattr(module, "save_png", fill)
    with pytest.raises(OutputError, match=f"; {written} of 3 pictures are written") as caught:
        visualize_pca(model, images, tmp_path / "out")
    assert caught.value.kept == (tmp_path / "out" if written else None)
    assert len(list(tmp_path.glob("out/*"))) == written


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Not a directory"):
        visualize_pca(lambda images: images, tmp_path / "absent", tmp_path / "file" / "out")
