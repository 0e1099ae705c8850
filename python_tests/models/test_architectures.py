from __future__ import annotations

import pytest
import torch

import franca_fast as ff
from franca_fast.errors import InputError


@pytest.mark.parametrize("arch", ["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"])
def test_sizes_have_the_published_number_of_parameters(arch):
    with torch.device("meta"):
        model = ff.models.build_backbone(arch, ffn_layer="mlp")
    n_parameters = sum(p.numel() for p in model.parameters())
    # 12 d^2 of each block and the patch embedding; norms and biases are the small rest.
    d, depth = model.embed_dim, model.depth
    assert n_parameters == pytest.approx(depth * 12 * d * d + 3 * 196 * d, rel=0.02)


@pytest.mark.parametrize("arch", list(ff.models.ARCHITECTURES))
def test_every_architecture_builds(arch):
    with torch.device("meta"):
        model = ff.models.build_backbone(arch)
    assert model.embed_dim == ff.models.ARCHITECTURES[arch]["embed_dim"]
    assert len(model.blocks) == ff.models.ARCHITECTURES[arch]["depth"]


def test_unknown_name_is_named():
    with pytest.raises(InputError, match="did you mean 'vit_base'"):
        ff.models.build_backbone("vit_bse")
