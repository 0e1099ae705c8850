"""The tables of released models, and the list of everything that has a name."""

from __future__ import annotations

from dataclasses import dataclass

from franca_fast.errors import InputError, did_you_mean
from franca_fast.models.architectures import ARCHITECTURES

CODE_LICENCE = "Apache-2.0"
WEIGHTS_LICENCE = "research only (RAIL)"
ARCHIVE_SUFFIX = "_chunked.tar.gz"
_FRANCA = "https://github.com/valeoai/Franca/releases/download"
_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
_PARTS = ("part_aa", "part_ab", "part_ac")


@dataclass(frozen=True)
class ModelInfo:
    """One line of `list_models()`.

    Attributes:
        name: what `load_model` takes: a released name, or an architecture.
        architecture: name in `franca_fast.models.architectures.ARCHITECTURES`.
        weights: name of the released weights; None for a bare architecture.
        img_size: side in pixels of the images the weights were trained on; None without weights.
        folder: address of the folder that holds the file; None without weights.
        file: name of the released file; for a chunked archive the common start of its parts.
        rasa: whether a file for the removal of absolute spatial attributes was released with it.
        licence: terms of the weights; of the code for a bare architecture.
        num_register_tokens: registers of the released weights.
        withdrawn: whether those who released the weights no longer list them, so that the file may
            be gone.
    """

    name: str
    architecture: str
    weights: str | None = None
    img_size: int | None = None
    folder: str | None = None
    file: str | None = None
    rasa: bool = False
    licence: str = CODE_LICENCE
    num_register_tokens: int = 0
    withdrawn: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the released files that hold the weights; several for a chunked archive."""
        if self.file is None:
            return ()
        if not self.file.endswith(ARCHIVE_SUFFIX):
            return (self.file,)
        return tuple(f"{self.file}.{part}" for part in _PARTS)

    @property
    def cached_file(self) -> str | None:
        """Name of the one `.pth` file that the cache holds; None for a bare architecture."""
        return None if self.file is None else f"{self._stem}.pth"

    @property
    def rasa_file(self) -> str | None:
        """Name of the released RASA file; None when there is none."""
        return f"{self._stem}_rasa.pth" if self.rasa else None

    @property
    def address(self) -> str | None:
        """Where the file was released; None for a bare architecture."""
        return None if self.file is None else f"{self.folder}/{self.file}"

    @property
    def _stem(self) -> str:
        return str(self.file).removesuffix(ARCHIVE_SUFFIX).removesuffix(".pth")


# name, architecture, weights, image size, release, file, RASA file. The first line of a name is
# what the name alone stands for.
_FRANCA_MODELS = (
    ("franca_vitb14", "vit_base", "IN21K", 518, "v1.0.0", "In21K.pth", True),
    ("franca_vitb14", "vit_base", "IN21K_518", 518, "v1.1.0", "In21K_518.pth", True),
    ("franca_vitb14", "vit_base", "IN21K_224", 224, "v1.1.0", "In21K_224.pth", False),
    ("franca_vitb14", "vit_base", "DINOV2_IN21K", 224, "v1.1.0", "Dinov2_In21K.pth", False),
    ("franca_vitb14", "vit_base", "DINOV2_IN21K_518", 518, "v1.1.0", "Dinov2_In21K_518.pth", True),
    ("franca_vitl14", "vit_large", "LAION", 518, "v1.0.0", "Laion600M.pth", True),
    ("franca_vitl14", "vit_large", "LAION_224", 224, "v1.1.0", "Laion600M_224.pth", False),
    ("franca_vitl14", "vit_large", "DINOV2_IN21K", 224, "v1.1.0", "Dinov2_In21K.pth", False),
    ("franca_vitl14", "vit_large", "DINOV2_IN21K_518", 518, "v1.1.0", "Dinov2_In21K_518.pth", True),
    ("franca_vitl14", "vit_large", "LAION_518", 518, "v1.1.0", "Laion_518.pth", True),
    ("franca_vitg14", "vit_giant2", "LAION", 224, "v1.0.0", f"Laion600M{ARCHIVE_SUFFIX}", True),
)
# Released once, and no longer listed by those who did.
_WITHDRAWN = {("franca_vitb14", "IN21K_518")}

# Meta's public backbones (code and weights Apache-2.0), each with and without four registers.
_DINOV2_MODELS = tuple(
    (f"dinov2_{short}14", architecture, registers)
    for registers in (False, True)
    for short, architecture in (
        ("vits", "vit_small"),
        ("vitb", "vit_base"),
        ("vitl", "vit_large"),
        ("vitg", "vit_giant2"),
    )
)

RELEASED_MODELS: tuple[ModelInfo, ...] = (
    *(
        ModelInfo(
            name,
            architecture,
            weights,
            size,
            f"{_FRANCA}/{release}",
            f"{name}_{file}",
            rasa,
            WEIGHTS_LICENCE,
            withdrawn=(name, weights) in _WITHDRAWN,
        )
        for name, architecture, weights, size, release, file, rasa in _FRANCA_MODELS
    ),
    *(
        ModelInfo(
            f"{name}_reg" if registers else name,
            architecture,
            "LVD142M",
            518,
            f"{_DINOV2}/{name}",
            f"{name}{'_reg4' if registers else ''}_pretrain.pth",
            num_register_tokens=4 if registers else 0,
        )
        for name, architecture, registers in _DINOV2_MODELS
    ),
)
RELEASED_NAMES = tuple(dict.fromkeys(model.name for model in RELEASED_MODELS))


def find_released(name: str, weights: str | None = None) -> ModelInfo:
    """Finds a released model by its name and the name of its weights.

    Args:
        name: for instance "franca_vitb14" or "dinov2_vits14_reg".
        weights: for instance "IN21K_224"; None takes the first of that name in the table.

    Raises:
        InputError: no such name or weights; the nearest known ones are named.

    Example:
        >>> find_released("franca_vitb14").file
        'franca_vitb14_In21K.pth'
    """
    models = {m.weights: m for m in RELEASED_MODELS if m.name == name}
    if not models:
        raise InputError(
            f"name: unknown '{name}'{did_you_mean(name, RELEASED_NAMES)}; accepted: "
            f"{', '.join(RELEASED_NAMES)}"
        )
    if weights is None:
        return next(iter(models.values()))
    if weights not in models:
        known = [key for key in models if key]
        raise InputError(
            f"weights: unknown '{weights}' of {name}{did_you_mean(weights, known)}; accepted: "
            f"{', '.join(known)}"
        )
    return models[weights]


def list_models() -> list[ModelInfo]:
    """Lists the released models, then the architectures that can be built without weights.

    Example:
        >>> [model.weights for model in list_models() if model.name == "franca_vitg14"]
        ['LAION']
    """
    return [*RELEASED_MODELS, *(ModelInfo(name, name) for name in ARCHITECTURES)]
