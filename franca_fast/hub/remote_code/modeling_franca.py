"""Dinov2 of transformers, with the two things it lacks to equal franca_fast.

It interpolates position embeddings as the weights were trained with (scale factors with an offset
where the configuration has one, and antialiasing as configured), and it removes absolute positions
from the patch tokens where the weights hold that map. Use:

    AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2PreTrainedModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Dinov2WithRegistersPreTrainedModel,
)


def interpolate_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embedding [1, 1 + n, d] of an image of this many pixels."""
    config, position = embeddings.config, embeddings.position_embeddings
    side = round((position.shape[1] - 1) ** 0.5)
    rows, columns = height // config.patch_size, width // config.patch_size
    if (rows, columns) == (side, side):
        return position
    grid = position[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    offset = config.interpolate_offset
    target: dict[str, Any] = {"size": (rows, columns)}
    if offset:
        target = {"scale_factor": ((rows + offset) / side, (columns + offset) / side)}
    grid = interpolate(grid, mode="bicubic", antialias=config.interpolate_antialias, **target)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(position.dtype)
    return torch.cat([position[:, :1], grid], dim=1)


def finish(model: Any, backbone: Any) -> None:
    """Puts what transformers lacks into a model that holds `backbone`."""
    embeddings, config = backbone.embeddings, model.config
    embeddings.interpolate_pos_encoding = MethodType(interpolate_positions, embeddings)
    model.position_removal = (
        nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        if config.position_removal
        else None
    )
    model.post_init()


def remove_positions(model: Any, outputs: Any) -> Any:
    """Applies the map to the patch tokens of the last hidden state."""
    if model.position_removal is not None:
        first_patch = 1 + getattr(model.config, "num_register_tokens", 0)
        others, patches = outputs.last_hidden_state.tensor_split([first_patch], dim=1)
        patches = model.position_removal(patches)
        outputs.last_hidden_state = torch.cat([others, patches], dim=1)
    return outputs


class FrancaConfig(Dinov2Config):
    """Configuration of a backbone whose patch tokens have their positions removed."""

    model_type = "franca"


class FrancaWithRegistersConfig(Dinov2WithRegistersConfig):
    """The same with register tokens."""

    model_type = "franca_with_registers"


class FrancaModel(Dinov2PreTrainedModel):
    """A Dinov2Model that equals franca_fast at every image size."""

    config_class = FrancaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.dinov2 = Dinov2Model(config)
        finish(self, self.dinov2)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """As Dinov2Model.forward."""
        return remove_positions(self, self.dinov2(pixel_values, **kwargs))


class FrancaWithRegistersModel(Dinov2WithRegistersPreTrainedModel):
    """A Dinov2WithRegistersModel that equals franca_fast at every image size."""

    config_class = FrancaWithRegistersConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.dinov2_with_registers = Dinov2WithRegistersModel(config)
        finish(self, self.dinov2_with_registers)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """As Dinov2WithRegistersModel.forward."""
        return remove_positions(self, self.dinov2_with_registers(pixel_values, **kwargs))
