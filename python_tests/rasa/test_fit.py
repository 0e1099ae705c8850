from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from franca_fast.errors import InputError
from franca_fast.evaluation.image.knn import knn_predict
from franca_fast.models import VisionTransformer, build_backbone
from franca_fast.rasa import FitSettings, PositionProjector, fit
from franca_fast.rasa.fit import fit_features, partial_path
from franca_fast.rasa.patch_tokens import CachedFeatures
from franca_fast.rasa.positions import Moments, patch_positions
from franca_fast.rasa.readout import Readout
from franca_fast.rasa.settings import READOUTS
from python_tests.rasa.tokens import GRID, planted, shares_of

QUICK = FitSettings(iterations=2, epochs=2, num_workers=0)


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(1)
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28).eval()
    torch.nn.init.normal_(model.pos_embed, std=0.5)
    return model


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 images of noise, just enough for a width of 128."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(90):
        pixels = torch.randint(0, 255, (30, 40, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def held_out_error(projector: PositionProjector, **options) -> tuple[float, float]:
    """Error of a fresh probe on new planted tokens, and chance."""
    positions = patch_positions(GRID)
    features = [planted(seed=seed, **options)[0] for seed in (1, 2)]
    fitted, other = (Moments(f.batches(range(f.n_images), 99), positions) for f in features)
    return other.error(fitted.probe(projector.matrix())), other.variance


@pytest.mark.parametrize("readout", READOUTS)
def test_planted_directions_are_found(readout):
    tokens, directions = planted()
    projector = fit_features(tokens, FitSettings(iterations=1, readout=readout))
    # The paper's number of steps leaves the sigmoid's weights on their way, so not quite there.
    assert shares_of(directions, projector.read).min() > 0.98
    assert projector.rank == 2


@pytest.mark.parametrize("readout", READOUTS)
def test_nothing_is_read_from_new_tokens_after_removal(readout):
    tokens, _ = planted()
    before, chance = held_out_error(PositionProjector(torch.eye(32)[None, :2]))
    projector = fit_features(tokens, FitSettings(readout=readout))
    after, _ = held_out_error(projector)
    assert before < 0.6 * chance
    assert after > 0.99 * chance


def test_fit_stops_when_the_loss_is_at_chance():
    tokens, _ = planted()
    projector = fit_features(tokens, FitSettings())
    lines = projector.facts["iterations"]
    assert 1 <= len(lines) < 8
    assert projector.rank == 2 * len(lines)
    assert lines[0]["explained"] > 0.4
    assert all(line["explained"] >= 0.01 for line in lines)
    more = fit_features(tokens, FitSettings(stop_below=0.3))
    assert torch.equal(more.weights, projector.weights[:1])


@pytest.mark.parametrize("compatible", [False, True])
def test_every_iteration_removes_two_more_directions(compatible):
    tokens, _ = planted()
    settings = FitSettings(iterations=4, epochs=2, stop_below=0, compatible=compatible)
    projector = fit_features(tokens, settings)
    assert (projector.rank, projector.compatible) == (8, compatible)
    removed = torch.eye(32).double() - projector.matrix()
    assert torch.linalg.matrix_rank(removed, tol=1e-6) == 8


def test_covariance_needs_one_iteration():
    tokens, _ = planted()
    projector = fit_features(tokens, FitSettings(readout="covariance"))
    assert projector.rank == 2


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_size_of_the_features_does_not_matter(scale):
    tokens, _ = planted(n=100)
    settings = FitSettings(iterations=1)
    raw = next(tokens.batches(range(100), 100)).unflatten(1, GRID)
    projector = fit_features(CachedFeatures(raw * scale), settings)
    torch.testing.assert_close(
        projector.weights * scale, fit_features(tokens, settings).weights, rtol=1e-2, atol=1e-4
    )


def test_tokens_without_positions_are_refused():
    tokens, _ = planted(strength=0)
    with pytest.raises(InputError, match="nothing to remove"):
        fit_features(tokens, FitSettings())


STATEMENTS = [
    "import franca_fast.rasa.fit",
    "import franca_fast.rasa.report",
    "from franca_fast.rasa.fit import fit_features",
    "from franca_fast.rasa import fit",
]


def test_name_means_the_function_whatever_is_imported_first():
    code = """
import os, sys
import torch  # once for all, as it takes long
for statement in sys.argv[1:]:
    if os.fork() == 0:
        exec(statement)
        import franca_fast as ff
        assert callable(ff.rasa.fit), statement
        sys.exit()
    assert os.wait()[1] == 0, statement
"""
    command = [sys.executable, "-c", code, *STATEMENTS]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_positions_of_a_random_network_are_removed(model, image_folder):
    settings = FitSettings(readout="covariance", num_workers=0)
    projector = fit(model, image_folder, settings)
    assert projector.rank == 2
    assert projector.facts["iterations"][0]["explained"] > 0.8


def test_same_seed_gives_the_same_bits_and_another_does_not(model, image_folder):
    first, again = (fit(model, image_folder, QUICK) for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    other = fit(model, image_folder, dataclasses.replace(QUICK, seed=1))
    assert not torch.equal(first.weights, other.weights)


def test_streamed_fit_equals_the_one_in_memory(model, image_folder):
    settings = dataclasses.replace(QUICK, batch_size=32)
    cached, streamed = (
        fit(model, image_folder, dataclasses.replace(settings, cache_gb=gb)) for gb in (1.0, 0.0)
    )
    torch.testing.assert_close(cached.matrix(), streamed.matrix(), rtol=0, atol=1e-3)


def test_model_is_not_changed_by_a_fit(model, image_folder):
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fit(model, image_folder, QUICK)
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fit_works_without_gradients_around_it():
    tokens, _ = planted(n=100)
    with torch.no_grad():
        assert fit_features(tokens, FitSettings(iterations=1, epochs=30)).rank == 2


def test_interrupted_fit_continues_to_the_same_result(model, image_folder, tmp_path, monkeypatch):
    settings = dataclasses.replace(QUICK, iterations=3)
    whole = fit(model, image_folder, settings)
    find, calls = Readout.find, []

    def interrupted(self, matrix, iteration, advance):
        calls.append(iteration)
        if calls == [0, 1, 2]:
            raise KeyboardInterrupt
        return find(self, matrix, iteration, advance)

    monkeypatch.setattr(Readout, "find", interrupted)
    output = tmp_path / "rasa.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(model, image_folder, settings, output=output)
    assert [file.name for file in tmp_path.iterdir()] == ["rasa.safetensors.partial.safetensors"]
    continued = fit(model, image_folder, settings, output=output)
    assert calls == [0, 1, 2, 2]
    assert torch.equal(continued.weights, whole.weights)
    assert continued.facts == whole.facts
    assert [file.name for file in tmp_path.iterdir()] == ["rasa.safetensors"]
    assert torch.equal(PositionProjector.from_files(output).weights, whole.weights)


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 1e-3}, {"crops": "center"}])
def test_what_another_fit_left_is_not_continued(model, image_folder, tmp_path, change, caplog):
    output = tmp_path / "rasa.safetensors"
    partial = tmp_path / "rasa.safetensors.partial.safetensors"
    fit(model, image_folder, QUICK).save(partial)
    settings = dataclasses.replace(QUICK, iterations=1, **change)
    projector = fit(model, image_folder, settings, output=output)
    assert "starting anew" in caplog.text
    assert torch.equal(projector.weights, fit(model, image_folder, settings).weights)


def test_too_few_images_are_refused(model, image_folder):
    some = sorted(image_folder.iterdir())[:10]
    with pytest.raises(InputError, match=r"10 images of 4 x 4.*at least 1280"):
        fit(model, some, QUICK)


def test_unreadable_images_do_not_count(model, image_folder, tmp_path):
    some = sorted(image_folder.iterdir())[:70]
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="70 images of 4 x 4"):
        fit(model, [*some, tmp_path], QUICK)


def test_damaged_rest_of_a_fit_is_not_continued(model, image_folder, tmp_path, caplog):
    (tmp_path / "rasa.safetensors.partial.safetensors").write_bytes(b"no file")
    settings, output = dataclasses.replace(QUICK, iterations=1), tmp_path / "rasa.safetensors"
    assert fit(model, image_folder, settings, output=output).rank == 2
    assert "starting anew" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["rasa.safetensors"]


@pytest.mark.parametrize("readout", READOUTS)
def test_what_patches_show_is_kept(readout):
    """Nearest neighbours find the class of planted tokens as well without their positions."""
    n, width = 128, 32
    labels = torch.arange(n) % 4
    place, directions = planted(n)
    shown = torch.randn(4, width)
    shown = 2 * torch.nn.functional.normalize(shown - shown @ directions.T @ directions, dim=1)
    tokens = next(place.batches(range(n), n)) + shown[labels][:, None]
    features = CachedFeatures(tokens.unflatten(1, GRID))
    projector = fit_features(features, FitSettings(readout=readout, iterations=1))
    patch_labels, accuracies = labels.repeat_interleave(tokens.shape[1]), []
    for part in (tokens, projector.apply(tokens)):
        flat = part.flatten(0, 1)
        predicted = knn_predict(flat[::2], patch_labels[::2], flat[1::2], (20,), 0.07)[20]
        accuracies.append((predicted == patch_labels[1::2]).double().mean().item())
    assert 0.5 < accuracies[0] < 0.99
    assert accuracies[1] > accuracies[0] - 0.01


def test_more_iterations_than_directions_are_refused():
    tokens, _ = planted()
    with pytest.raises(InputError, match="up to 15"):
        fit_features(tokens, FitSettings(iterations=16))


def test_cleaned_model_is_refused(model, image_folder):
    clean = PositionProjector(torch.randn(1, 2, 128)).attach(model)
    with pytest.raises(InputError, match="already"):
        fit(clean, image_folder, QUICK)


def test_output_is_checked_before_the_work(model, tmp_path):
    (tmp_path / "rasa.safetensors").write_text("mine")
    for name in ("rasa.safetensors", "rasa.txt"):
        with pytest.raises(InputError):
            fit(model, tmp_path / "nothing", QUICK, output=tmp_path / name)


@pytest.mark.parametrize("n_bytes", [30, 240, 255])
def test_what_is_kept_between_has_a_name_that_the_disk_takes(tmp_path, n_bytes):
    output = tmp_path / ("ü" * ((n_bytes - 12) // 2) + ".safetensors")
    partial = partial_path(output)
    partial.touch()
    assert partial.name.endswith(".partial.safetensors")
    assert partial.name.startswith(output.name[:100])


def test_a_fit_goes_on_when_what_there_is_cannot_be_kept(tmp_path, caplog):
    (tmp_path / "file").touch()
    tokens, _ = planted()
    partial = tmp_path / "file" / "x.partial.safetensors"
    settings = FitSettings(readout="covariance", iterations=1)
    assert fit_features(tokens, settings, partial=partial).rank == 2
    assert "Not a directory" in caplog.text


def _fit_on_the_gpu(readout: str) -> None:
    tokens = CachedFeatures(torch.randn(128, *GRID, 32), device=torch.device("cuda"))
    settings = FitSettings(
        iterations=1, epochs=2, batch_size=50, readout=readout, stop_below=0.0, num_workers=0
    )
    projector = fit_features(tokens, settings)
    cleaned = projector.apply(torch.randn(2, 30, 32, device="cuda"))
    assert (cleaned.device.type, cleaned.shape) == ("cuda", (2, 30, 32))


@pytest.mark.parametrize("readout", READOUTS)
def test_a_gpu_fits_without_a_wait_for_each_step(
    fake_gpu: Callable[..., Any], readout: str
) -> None:
    trained = {
        "rasa/patch_tokens.py: batches": 1 + 2 * 3,
        "rasa/readout.py: _train": 2 + 2 + 1,  # before the first epoch, after each, at the end
    }
    summed = {"rasa/patch_tokens.py: batches": 1 + 3, "rasa/positions.py: __init__": 1 + 3}
    assert fake_gpu(_fit_on_the_gpu, readout) == {
        **(summed if readout == "covariance" else trained),
        "rasa/readout.py: __init__": 2,
        "hub/projector.py: apply": 2,
    }
