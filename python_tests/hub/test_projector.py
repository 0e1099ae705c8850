from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from franca_fast.errors import InputError, RenamedError
from franca_fast.rasa import PositionProjector


def released_removal(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The published equation, literally: planes made orthonormal one by one, removed in turn."""
    for row, column in weights.double():
        u = row / row.norm()
        v = column - (column @ u) * u
        v = v / v.norm()
        features = features - (features @ u)[..., None] * u - (features @ v)[..., None] * v
    return features


@pytest.fixture
def released(golden_folder: Path) -> PositionProjector:
    return PositionProjector.from_files(golden_folder / "rasa.pth", compatible=True)


def test_compatible_mode_gives_the_golden_output(released, golden):
    output = released.apply(golden["rasa.features"])
    torch.testing.assert_close(output, golden["rasa.output"], rtol=0, atol=1e-5)


def test_the_last_layer_of_the_file_reads_golden_positions(released, golden):
    read = (golden["rasa.features"] @ released.weights[-1].T).sigmoid()
    torch.testing.assert_close(read, golden["rasa.position"], rtol=0, atol=1e-6)


def test_order_of_a_released_file_matters(released, golden):
    other = PositionProjector(released.weights.flip(0), compatible=True)
    assert (other.apply(golden["rasa.features"]) - golden["rasa.output"]).abs().max() > 1e-2


def test_compatible_mode_is_no_projection(released):
    matrix = released.matrix()
    assert (matrix @ matrix - matrix).norm() > 1e-2


@pytest.mark.parametrize(("width", "iterations"), [(16, 1), (64, 9), (768, 9), (1536, 30)])
def test_default_is_a_projection_of_rank_two_per_iteration(width, iterations):
    projector = PositionProjector(torch.randn(iterations, 2, width))
    # As stored, in float32; multiplied in float64, so that its rounding alone is measured.
    matrix = projector.matrix().float().double()
    assert (matrix @ matrix - matrix).norm() < 1e-6
    assert (matrix - matrix.T).norm() < 1e-6
    assert projector.rank == 2 * iterations
    removed = torch.eye(width, dtype=torch.float64) - matrix
    assert torch.linalg.matrix_rank(removed, tol=1e-4) == 2 * iterations


def test_projecting_twice_in_float32_changes_nothing_more():
    matrix = PositionProjector(torch.randn(9, 2, 768)).matrix().float()
    assert (matrix @ matrix - matrix).norm() < 1e-5


def test_nothing_of_the_read_outs_is_left_by_default(golden, golden_folder):
    projector = PositionProjector.from_files(golden_folder / "rasa.pth")
    output = projector.apply(golden["rasa.features"])
    left = output @ projector.weights.flatten(0, 1).T
    assert left.abs().max() < 1e-5
    leaked = golden["rasa.output"] @ projector.weights.flatten(0, 1).T
    assert leaked.abs().max() > 1e-2


def test_nearly_parallel_directions_stay_orthonormal():
    weights = torch.randn(1, 2, 64).repeat(4, 1, 1) + 1e-4 * torch.randn(4, 2, 64)
    u = PositionProjector(weights).read
    assert u.shape == (8, 64)
    torch.testing.assert_close(u @ u.T, torch.eye(8, dtype=u.dtype), rtol=0, atol=1e-12)


def test_repeated_directions_count_once():
    weights = torch.randn(1, 2, 16)
    assert PositionProjector(torch.cat([weights, 3 * weights])).rank == 2


def test_compatible_mode_equals_the_removals_one_by_one():
    weights, features = torch.randn(5, 2, 24), torch.randn(3, 7, 24, dtype=torch.float64)
    projector = PositionProjector(weights, compatible=True)
    expected = released_removal(features, weights)
    torch.testing.assert_close(features @ projector.matrix().T, expected, rtol=0, atol=1e-12)


def test_module_equals_the_matrix():
    for compatible in (False, True):
        projector = PositionProjector(torch.randn(3, 2, 16), compatible=compatible)
        features = torch.randn(4, 5, 16)
        expected = features.double() @ projector.matrix().T
        torch.testing.assert_close(
            projector.module()(features).double(), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_features_is_kept(dtype):
    projector = PositionProjector(torch.randn(3, 2, 16))
    features = torch.randn(2, 5, 16).to(dtype)
    output = projector.apply(features)
    assert output.dtype == dtype
    expected = (features.double() @ projector.matrix().T).to(dtype)
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)


def test_gradients_pass_through():
    features = torch.randn(2, 16, requires_grad=True)
    projector = PositionProjector(torch.randn(2, 2, 16))
    projector.apply(features).square().sum().backward()
    expected = 2 * projector.apply(features.detach())  # P is symmetric and P P = P
    torch.testing.assert_close(features.grad, expected, rtol=0, atol=1e-5)


def test_first_iterations_are_those_of_the_shorter_file():
    weights = torch.randn(4, 2, 16)
    first = PositionProjector(weights, compatible=True).first(2)
    assert torch.equal(first.weights, weights[:2])
    assert first.compatible
    with pytest.raises(InputError, match="1 to 4"):
        PositionProjector(weights).first(5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.randn(2, 16), r"\[iterations, 2, d\]"),
        (torch.randn(2, 3, 16), r"\[iterations, 2, d\]"),
        (torch.zeros(0, 2, 16), r"\[iterations, 2, d\]"),
        (torch.ones(1, 2, 4, dtype=torch.int64), "finite"),
        (torch.full((1, 2, 4), float("nan")), "finite"),
        (torch.full((1, 2, 4), float("inf")), "finite"),
        (torch.zeros(1, 2, 4), "zero"),
        (torch.randn(2, 2, 4), "leave nothing"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        PositionProjector(weights)


def test_a_plane_that_is_a_line_is_refused_in_compatible_mode():
    with pytest.raises(InputError, match="same direction"):
        PositionProjector(torch.ones(1, 2, 8), compatible=True)


def test_another_width_is_refused():
    with pytest.raises(InputError, match=r"features: \(3, 15\); accepted: \[\.\.\., 16\]"):
        PositionProjector(torch.randn(1, 2, 16)).apply(torch.randn(3, 15))


def test_old_name_of_the_fit_says_the_new_one():
    with pytest.raises(RenamedError, match=r"since 0\.2 it is franca_fast\.rasa\.fit"):
        PositionProjector.fit("model", "images", output="rasa.safetensors")


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_folded_layer_equals_projector_then_layer(compatible, bias):
    projector = PositionProjector(torch.randn(8, 2, 96), compatible=compatible)
    layer, tokens = nn.Linear(96, 50, bias=bias), torch.randn(4, 9, 96)
    folded = projector.fold(layer)
    torch.testing.assert_close(folded(tokens), layer(projector.apply(tokens)), rtol=0, atol=1e-5)
    assert (folded(tokens) - layer(tokens)).abs().max() > 1e-2


def test_layer_itself_is_not_changed_and_the_bias_stays():
    layer = nn.Linear(16, 3)
    before = layer.weight.clone()
    folded = PositionProjector(torch.randn(2, 2, 16)).fold(layer)
    assert torch.equal(layer.weight, before)
    assert torch.equal(folded.bias, layer.bias)


def test_folding_twice_changes_nothing_more():
    projector = PositionProjector(torch.randn(2, 2, 16))
    once = projector.fold(nn.Linear(16, 3))
    torch.testing.assert_close(projector.fold(once).weight, once.weight, rtol=0, atol=1e-6)


def test_dtype_is_kept():
    folded = PositionProjector(torch.randn(2, 2, 16)).fold(nn.Linear(16, 3).bfloat16())
    assert folded.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [nn.LayerNorm(16), nn.Linear(15, 3)])
def test_layers_that_cannot_take_it_are_refused(layer):
    with pytest.raises(InputError, match="layer"):
        PositionProjector(torch.randn(2, 2, 16)).fold(layer)
