"""The table of released Franca models, and the list of everything that has a name."""

from __future__ import annotations

from dataclasses import dataclass

from franca_fast.models.architectures import ARCHITECTURES

CODE_LICENCE = "Apache-2.0"
WEIGHTS_LICENCE = "research only (RAIL)"
_BASE_ADDRESS = "https://github.com/valeoai/Franca/releases/download"


@dataclass(frozen=True)
class ModelInfo:
    """One line of `list_models()`.

    Attributes:
        name: what `load_model` takes: a released name, or an architecture.
        architecture: name in `franca_fast.models.architectures.ARCHITECTURES`.
        weights: name of the released weights; None for a bare architecture.
        img_size: side in pixels of the images the weights were trained on; None without weights.
        release: tag of the release that holds the file; None without weights.
        file: name of the released file; for a chunked archive the common start of its parts.
        rasa: whether a file for the removal of absolute spatial attributes was released with it.
        licence: terms of the weights; of the code for a bare architecture.
    """

    name: str
    architecture: str
    weights: str | None = None
    img_size: int | None = None
    release: str | None = None
    file: str | None = None
    rasa: bool = False
    licence: str = CODE_LICENCE

    @property
    def address(self) -> str | None:
        """Where the file was released; None for a bare architecture."""
        return None if self.file is None else f"{_BASE_ADDRESS}/{self.release}/{self.file}"


# name, architecture, weights, image size, release, file, RASA file
_RELEASED = (
    ("franca_vitb14", "vit_base", "IN21K", 518, "v1.0.0", "In21K.pth", True),
    ("franca_vitb14", "vit_base", "IN21K_518", 518, "v1.1.0", "In21K_518.pth", True),
    ("franca_vitb14", "vit_base", "DINOV2_IN21K", 224, "v1.1.0", "Dinov2_In21K.pth", False),
    ("franca_vitb14", "vit_base", "DINOV2_IN21K_518", 518, "v1.1.0", "Dinov2_In21K_518.pth", True),
    ("franca_vitl14", "vit_large", "LAION", 518, "v1.0.0", "Laion600M.pth", True),
    ("franca_vitl14", "vit_large", "DINOV2_IN21K", 224, "v1.1.0", "Dinov2_In21K.pth", False),
    ("franca_vitl14", "vit_large", "DINOV2_IN21K_518", 518, "v1.1.0", "Dinov2_In21K_518.pth", True),
    ("franca_vitl14", "vit_large", "LAION_518", 518, "v1.1.0", "Laion_518.pth", True),
    ("franca_vitg14", "vit_giant2", "LAION", 224, "v1.0.0", "Laion600M_chunked.tar.gz", True),
)

RELEASED_MODELS: tuple[ModelInfo, ...] = tuple(
    ModelInfo(name, arch, weights, size, release, f"{name}_{file}", rasa, WEIGHTS_LICENCE)
    for name, arch, weights, size, release, file, rasa in _RELEASED
)


def list_models() -> list[ModelInfo]:
    """Lists the released models, then the architectures that can be built without weights.

    Example:
        >>> [model.weights for model in list_models() if model.name == "franca_vitg14"]
        ['LAION']
    """
    return [*RELEASED_MODELS, *(ModelInfo(name, name) for name in ARCHITECTURES)]
