"""The backbone against golden values, and packed crops against separate ones."""

from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError
from franca_fast.hub import normalize_backbone_keys, read_state_dict
from franca_fast.models.stochastic_depth import draw_subsets

# Fields of the golden architecture that are not arguments of VisionTransformer.
STORAGE_FIELDS = {"block_chunks", "layerscale"}


@pytest.fixture(scope="module")
def backbone(golden_facts, golden_folder):
    facts = {k: v for k, v in golden_facts["backbone"].items() if k not in STORAGE_FIELDS}
    model = ff.models.VisionTransformer(**facts).eval()
    state = read_state_dict(golden_folder / "teacher_checkpoint.pth")
    model.load_state_dict(normalize_backbone_keys(state), strict=True)
    return model


def small(**changes):
    arguments = dict(img_size=28, patch_size=4, embed_dim=32, depth=3, num_heads=2)
    return ff.models.VisionTransformer(**{**arguments, **changes})


def make_layerscale_matter(model):
    for block in model.blocks:
        torch.nn.init.ones_(block.ls1.gamma)
        torch.nn.init.ones_(block.ls2.gamma)
    return model


@pytest.mark.parametrize("case", ["native", "masked", "offsize"])
@torch.no_grad()
def test_forward_equals_golden(backbone, golden, case):
    image = golden["image_offsize" if case == "offsize" else "image"]
    out = backbone.forward_features(image, golden["masks"] if case == "masked" else None)
    for name in ("x_norm_clstoken", "x_norm_patchtokens", "x_prenorm"):
        torch.testing.assert_close(out[name], golden[f"{case}.{name}"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_packed_forward_equals_golden(backbone, golden):
    outs = backbone.forward_features(
        [golden["image"], golden["image_offsize"], golden["image"]], [golden["masks"], None, None]
    )
    for out, case in zip(outs, ("masked", "offsize", "native"), strict=True):
        expected = golden[f"{case}.x_prenorm"]
        torch.testing.assert_close(out["x_prenorm"], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_intermediate_layers_equal_golden(backbone, golden):
    layers = backbone.get_intermediate_layers(
        golden["image"], n=2, reshape=True, return_class_token=True
    )
    for i, (patch, cls) in enumerate(layers):
        torch.testing.assert_close(patch, golden[f"intermediate.{i}.patch"], rtol=0, atol=1e-4)
        torch.testing.assert_close(cls, golden[f"intermediate.{i}.cls"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_intermediate_layers_by_index(backbone, golden):
    by_count = backbone.get_intermediate_layers(golden["image"], n=2)
    by_index = backbone.get_intermediate_layers(golden["image"], n=[2, 3])
    assert all(torch.equal(a, b) for a, b in zip(by_count, by_index, strict=True))
    raw = backbone.get_intermediate_layers(golden["image"], n=1, norm=False)[0]
    assert torch.equal(backbone.norm(raw), by_index[1])


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("ffn_layer", ["mlp", "swiglu"])
def test_packed_crops_equal_separate_crops_forward_and_backward(registers, ffn_layer):
    model = make_layerscale_matter(small(num_register_tokens=registers, ffn_layer=ffn_layer))
    images, crops = torch.randn(2, 3, 28, 28), torch.randn(5, 3, 12, 8)
    masks = torch.rand(2, 49) < 0.4
    packed = model.forward_features([images, crops], [masks, None])
    separate = [model.forward_features(images, masks), model.forward_features(crops)]
    gradients = []
    for outs in (packed, separate):
        loss = sum(o[k].pow(2).sum() for o in outs for k in ("x_norm_clstoken", "x_prenorm"))
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for a, b in zip(packed, separate, strict=True):
        for name in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def tokens_and_gradients(model, crops, masks, patches, some):
    """The CLS tokens and some patches, all computed or these alone, and what follows from them."""
    model.zero_grad()
    torch.manual_seed(1)
    outs = model.forward_features(crops, masks, patches if some else None)
    if not some:
        for out, numbers in zip(outs, patches, strict=True):
            every = out["x_norm_patchtokens"].flatten(0, 1)
            out["x_norm_patchtokens"] = every.index_select(0, numbers)
    names = ("x_norm_clstoken", "x_norm_patchtokens")
    found = torch.cat([out[name] for out in outs for name in names])
    drawn_next = torch.rand(1)
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    return [drawn_next, found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("case", ["local crops", "one size", "no patches", "no LayerScale"])
def test_some_tokens_are_as_among_all(rate, registers, case):
    model = small(
        num_register_tokens=registers,
        drop_path_rate=rate,
        ffn_layer="mlp" if case == "one size" else "swiglu",
        layerscale=None if case == "no LayerScale" else 0.5,
    ).double()
    masks = torch.rand(4, 49) < 0.3
    patches = masks.flatten().nonzero().flatten()[: 0 if case == "no patches" else None]
    crops, masks, patches = [torch.randn(4, 3, 28, 28).double()], [masks], [patches]
    if case != "one size":
        crops.append(torch.randn(6, 3, 12, 8).double())
        masks.append(None)
        patches.append(torch.tensor([7, 2]))
    some, every = (
        tokens_and_gradients(model, crops, masks, patches, some) for some in (True, False)
    )
    for a, b in zip(some, every, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_some_tokens_of_one_batch():
    model = make_layerscale_matter(small(num_register_tokens=2))
    images, masks = torch.randn(2, 3, 28, 20), torch.rand(2, 35) < 0.4
    every = model.forward_features(images, masks)
    some = model.forward_features(images, masks, torch.tensor([3, 34, 35]))
    expected = every["x_norm_patchtokens"].flatten(0, 1)[[3, 34, 35]]
    torch.testing.assert_close(some["x_norm_patchtokens"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some["x_norm_clstoken"], every["x_norm_clstoken"])
    assert some["masks"] is masks and "x_prenorm" not in some


def test_the_last_block_computes_few_tokens():
    model = small()
    sizes = []
    model.blocks[-1].mlp.register_forward_hook(lambda m, inputs, out: sizes.append(out.shape[0]))
    patches = [torch.tensor([3, 8]), torch.empty(0, dtype=torch.int64)]
    model.forward_features([torch.randn(2, 3, 28, 28), torch.randn(3, 3, 8, 8)], None, patches)
    assert sizes == [2 + 2 + 3]


def test_masks_hide_the_pixels_of_their_patches():
    model = make_layerscale_matter(small()).eval()
    masks = torch.zeros(1, 49, dtype=torch.bool)
    masks[0, 8] = True  # row 1, column 1: pixels 4..7
    image = torch.randn(1, 3, 28, 28)
    changed = image.clone()
    changed[..., 4:8, 4:8] = 9.0
    a, b = (model.forward_features(x, masks)["x_prenorm"] for x in (image, changed))
    assert torch.equal(a, b)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_stochastic_depth_keeps_the_mean_on_one_size(rate):
    _check_mean_of_stochastic_depth(rate, lambda block, x: block(x))


def run_packed(block, x, crops):
    rate = block.drop_path if block.training else 0.0
    (subsets,) = draw_subsets(crops, [rate], x.device)
    return block.forward_packed(x, crops, subsets)


def test_stochastic_depth_keeps_the_mean_on_packed_crops():
    def run(block, x):
        return run_packed(block, x.flatten(0, 1), [(x.shape[0], x.shape[1])]).view_as(x)

    _check_mean_of_stochastic_depth(0.5, run)


def _check_mean_of_stochastic_depth(rate, run):
    # Attention is switched off so that one branch is left and its mean is exactly linear.
    block = make_layerscale_matter(small(drop_path_rate=rate)).blocks[0]
    torch.nn.init.zeros_(block.ls1.gamma)
    x = torch.randn(8, 5, 32)
    with torch.no_grad():
        expected = run(block.eval(), x) - x
        block.train()
        draws = torch.stack([run(block, x) - x for _ in range(600)])
    per_image = draws.abs().amax(dim=(2, 3)) > 0
    assert 0 < per_image.float().mean() < 1
    spread = draws.std(dim=0) / 600**0.5
    assert ((draws.mean(dim=0) - expected).abs() <= 5 * spread + 1e-5).all()


def test_packed_stochastic_depth_draws_subsets_of_each_crop_size():
    block = make_layerscale_matter(small(drop_path_rate=0.5)).blocks[0].train()
    x = torch.randn(4 * 6 + 10 * 3, 32)
    torch.nn.init.zeros_(block.ls2.gamma)
    moved = (run_packed(block, x, [(4, 6), (10, 3)]) - x).detach().abs().amax(dim=1) > 0
    assert moved[:24].view(4, 6).all(dim=1).sum() == 2
    assert moved[24:].view(10, 3).all(dim=1).sum() == 5
    assert moved.sum() == 2 * 6 + 5 * 3


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_position_interpolation_reaches_any_grid(offset):
    model = small(interpolate_offset=offset).eval()
    for rows in range(1, 14):
        tokens = model.forward_features(torch.randn(1, 3, 4 * rows, 4 * (14 - rows)))
        assert tokens["x_norm_patchtokens"].shape[1] == rows * (14 - rows)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 3),
    ],
    ids=["one image", "one channel", "bytes", "channels last"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_images_of_another_form_are_refused_by_what_is_accepted(images, packed):
    with pytest.raises(InputError, match=r"accepted: images \[batch, 3, height, width\]"):
        small().forward_features([images] if packed else images)


def test_config_rebuilds_the_network():
    model = small(num_register_tokens=2, ffn_layer="mlp", layerscale=None)
    twin = ff.models.VisionTransformer(**model.config)
    twin.load_state_dict(model.state_dict(), strict=True)


def test_trains_under_autocast():
    model = small(drop_path_rate=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        outs = model.forward_features([torch.randn(2, 3, 28, 28), torch.randn(4, 3, 12, 12)])
        sum(o["x_norm_clstoken"].float().pow(2).sum() for o in outs).backward()
    assert model.pos_embed.grad.isfinite().all() and model.pos_embed.grad.dtype == torch.float32


def test_spread_of_the_initial_weights_is_no_part_of_the_network():
    model = small(init_std=0.1, pos_embed_init_std=0.5)
    linear = [p for p in model.blocks.parameters() if p.dim() == 2]
    assert torch.cat([p.flatten() for p in linear]).std().item() == pytest.approx(0.1, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(0.5, rel=0.15)
    assert model.config == small().config


def test_compiles_without_graph_breaks():
    model = small().eval()
    image = torch.randn(2, 3, 28, 28)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(img_size=30), "img_size: 30"),
        (lambda: small(num_heads=5), "num_heads: 5"),
        (lambda: small(ffn_layer="swigluu"), "did you mean 'swiglu'"),
        (lambda: small(drop_path_rate=1.0), "drop_path_rate: 1.0"),
        (lambda: small()(torch.randn(1, 3, 28, 30)), "28 x 30 pixels"),
        (lambda: small()(torch.randn(3, 28, 28)), "x: torch.float32"),
        (lambda: small().forward_features([]), "x: 0 batches"),
        (
            lambda: small().forward_features(torch.randn(1, 3, 28, 28), patches=torch.ones(1)),
            r"patches: torch.float32 \(1,\); accepted: torch.int64",
        ),
        (
            lambda: small().forward_features([torch.randn(1, 3, 8, 8)], None, []),
            "patches: .*accepted: .* one for each of 1 batches",
        ),
        (lambda: small().get_intermediate_layers(torch.randn(1, 3, 28, 28), n=4), "n: 4"),
        (
            lambda: small().forward_features(torch.randn(1, 3, 28, 28), torch.zeros(1, 48).bool()),
            "masks: torch.bool \\(1, 48\\)",
        ),
    ],
)
def test_wrong_input_is_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
