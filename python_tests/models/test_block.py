"""A block on packed crops: compiled, under activation checkpointing, on subsets of images."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import franca_fast as ff
from franca_fast.models.block import SwiGLU
from franca_fast.models.stochastic_depth import draw_subsets

CROPS = [(4, 17), (6, 5)]  # images and tokens of each
TOKENS = sum(images * tokens for images, tokens in CROPS)


@pytest.fixture(params=[0.0, 0.5], ids=["every image", "subsets"])
def block(request):
    arguments = dict(img_size=28, patch_size=4, embed_dim=128, depth=1, num_heads=2)
    model = ff.models.VisionTransformer(**arguments, drop_path_rate=request.param)
    block = model.blocks[0].train()
    torch.nn.init.ones_(block.ls1.gamma)
    return block


@pytest.fixture(params=[None, (0, 17, 20, 68, 73)], ids=["all rows", "some rows"])
def rows(request):
    return request.param and torch.tensor(request.param)


def results(block, run, rows):
    """Output and all gradients, with the same random numbers whatever runs."""
    block.zero_grad()
    torch.manual_seed(1)
    x = torch.randn(TOKENS, 128, requires_grad=True)
    (subsets,) = draw_subsets(CROPS, [block.drop_path], x.device)
    out = run(x, CROPS, subsets, rows)
    out.sin().sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]


def test_a_block_compiles_to_one_graph(block, rows):
    expected = results(block, block.forward_packed, rows)
    run = torch.compile(block.forward_packed, fullgraph=True, backend="aot_eager")
    for ours, exact in zip(results(block, run, rows), expected, strict=True):
        torch.testing.assert_close(ours, exact)


def test_activation_checkpointing_changes_nothing(block, rows):
    expected = results(block, block.forward_packed, rows)
    again = results(
        block,
        lambda *arguments: checkpoint(block.forward_packed, *arguments, use_reentrant=False),
        rows,
    )
    for ours, exact in zip(again, expected, strict=True):
        assert torch.equal(ours, exact)


def test_swiglu_is_the_definition_and_exports_as_pytorchs_operators():
    layer, x = SwiGLU(16, 24, bias=True), torch.randn(3, 5, 16)
    gate, value = layer.w12(x).chunk(2, dim=-1)
    expected = layer.w3(torch.nn.functional.silu(gate) * value)
    program = torch.export.export(layer, (x,))
    for result in (layer(x), program.module()(x)):
        torch.testing.assert_close(result, expected)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.silu.default" in targets and not any("franca_fast" in name for name in targets)


def test_swiglu_takes_pytorchs_transforms():
    layer = SwiGLU(8, 24, bias=True)
    x, direction = torch.randn(2, 5, 8).unbind(0)
    step = 1e-3
    _, tangent = torch.func.jvp(layer, (x,), (direction,))
    expected = (layer(x + step * direction) - layer(x - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-3, atol=1e-4)

    weights = dict(layer.named_parameters())
    loss = lambda w, row: torch.func.functional_call(layer, w, (row,)).sum()  # noqa: E731
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    layer(x).sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)

    traced = torch.jit.trace(layer, x)
    assert "franca_fast::" not in str(traced.inlined_graph)
