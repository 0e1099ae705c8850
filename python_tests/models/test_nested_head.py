"""The nested prototype head against golden values of both released forms."""

from __future__ import annotations

import json

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError
from franca_fast.hub import read_state_dict
from franca_fast.models import nested_head, shared_prototypes
from franca_fast.ops import normalized_prototypes
from python_tests.helpers import DEVICE, heads

FILES = {
    "full": ("teacher_checkpoint.pth", "dino_head."),
    "slice": ("slice_head.pth", "ibot_head."),
}


@pytest.mark.parametrize("projection", ["full", "slice"])
@torch.no_grad()
def test_equals_golden(golden, golden_facts, golden_folder, projection):
    facts = golden_facts["head"]
    head = ff.models.NestedPrototypeHead(
        facts["in_dim"],
        facts["out_dim"],
        hidden_dim=facts["hidden_dim"],
        bottleneck_dim=facts["bottleneck_dim"],
        projection=projection,
    )
    assert list(head.nesting_dims) == facts["nesting_list"]
    file, prefix = FILES[projection]
    state = read_state_dict(golden_folder / file)
    head.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True
    )
    expected = heads(golden, f"head_{projection}.logits")
    for ours, theirs in zip(head(golden["head.features"]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def small(**changes):
    return ff.models.NestedPrototypeHead(
        32, 64, **{"hidden_dim": 16, "bottleneck_dim": 8, **changes}
    )


def test_the_config_builds_the_same_head():
    head = small(projection="full", normalize=True)
    again = ff.models.NestedPrototypeHead(**json.loads(json.dumps(head.config)))
    again.load_state_dict(head.state_dict())
    assert again.config == head.config and again.nesting_dims == head.nesting_dims
    x = torch.randn(3, 32)
    assert all(torch.equal(*pair) for pair in zip(head(x), again(x), strict=True))


def test_slice_reads_only_its_slice():
    head, x = small(), torch.randn(3, 32)
    changed = x.clone()
    changed[:, 8:] += 1.0
    before, after = head(x), head(changed)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_scores_are_those_of_weight_normalised_prototypes():
    head, x = small(), torch.randn(3, 32)
    torch.nn.init.uniform_(head.last_layers[2].weight_g)
    layer, bottleneck = head.last_layers[2], head.bottlenecks(x)[2]
    weight = torch._weight_norm(layer.weight_v, layer.weight_g, 0)
    torch.testing.assert_close(head(x)[2], bottleneck @ weight.t())


@pytest.mark.parametrize("autocast", [False, True])
def test_streamed_scores_multiply_out_to_the_stored_ones(autocast):
    head, x = small(), torch.randn(3, 32)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
        stored, scores = head(x), head(x, streamed=True)
        products = ff.ops.prototype_scores(scores.values, scores.prototypes, scales=scores.scales)
    assert scores.streamed and scores.columns == list(head.out_dims)
    for product, score in zip(products, stored, strict=True):
        # In float32 the scale is taken in before the product, or after it.
        tolerance = 0.0 if autocast else 4 * torch.finfo(score.dtype).eps
        torch.testing.assert_close(product, score, rtol=0, atol=tolerance)


def low_scores(head, x):
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        return head(x)[4]


@pytest.fixture
def made(monkeypatch):
    """Dtypes of the prototypes that heads made for products in another dtype."""
    dtypes = []

    def counted(v, g, dtype):
        dtypes.append(dtype)
        return normalized_prototypes(v, g, dtype)

    monkeypatch.setattr(nested_head, "normalized_prototypes", counted)
    return dtypes


def test_passes_with_the_same_weights_share_their_prototypes(made):
    head, x = small(nesting_dims=[32]), torch.randn(3, 32)
    with shared_prototypes(), torch.autocast(DEVICE.type, torch.bfloat16):
        scores = [head(x)[0] for _ in range(2)]
        streamed = [head(x, streamed=True) for _ in range(2)]
        sum(s.float().sum() for s in scores).backward()
    assert made == [torch.bfloat16] and torch.equal(*scores)
    assert streamed[0].prototypes[0].data_ptr() == streamed[1].prototypes[0].data_ptr()
    low_scores(small(nesting_dims=[8, 16, 24, 28, 32]), x)
    assert len(made) == 1 + 5


def in_place(layer, others):
    with torch.no_grad():
        layer.weight_v.copy_(others.weight_v)


def by_an_optimizer(layer, others):
    layer.weight_v.grad, layer.weight_g.grad = torch.ones_like(layer.weight_v), None
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def by_length(layer, others):
    layer.weight_g.detach().mul_(2.0)


@pytest.mark.parametrize(
    "change",
    [
        in_place,
        by_an_optimizer,
        by_length,
        lambda layer, others: layer.load_state_dict(others.state_dict()),
        lambda layer, others: layer.load_state_dict(others.state_dict(), assign=True),
    ],
)
def test_shared_prototypes_follow_their_weights(change):
    head, others, x = small(), small(), torch.randn(3, 32)
    with shared_prototypes():
        before = low_scores(head, x)
        change(head.last_layers[4], others.last_layers[4])
        after = low_scores(head, x)
    assert torch.equal(after, low_scores(head, x)) and not torch.equal(after, before)


def test_nothing_is_shared_that_was_not_asked_for():
    head, x = small(), torch.randn(3, 32)
    with shared_prototypes():
        before = low_scores(head, x)
    # Nothing can notice this, nor what fused optimizers do.
    head.last_layers[4].weight_v.data.neg_()
    assert torch.equal(low_scores(head, x), -before)


def test_every_parameter_gets_a_gradient():
    head = small()
    sum(s.pow(2).sum() for s in head(torch.randn(3, 32))).backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_one_dimension_is_a_plain_head():
    head = small(nesting_dims=[32], normalize=True)
    assert head.out_dims == (64,)
    torch.testing.assert_close(head.bottlenecks(torch.randn(3, 32))[0].norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_depth_of_the_mlp(n_layers):
    head = small(n_layers=n_layers)
    linear = [m for m in head.mlps[0] if isinstance(m, torch.nn.Linear)]
    assert len(linear) == n_layers and linear[-1].out_features == 8
    assert head(torch.randn(3, 32))[4].shape == (3, 64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(projection="both"), "projection: 'both'"),
        (lambda: small(nesting_dims=[64]), "nesting_dims: \\(64,\\)"),
        (lambda: small(nesting_dims=[0]), "nesting_dims: \\(0,\\)"),
        (lambda: small(n_layers=0), "n_layers: 0"),
        (lambda: ff.models.NestedPrototypeHead(20, 64), "a multiple of 16"),
        (lambda: ff.models.NestedPrototypeHead(32, 63), "out_dim: 63"),
    ],
)
def test_wrong_arguments_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
