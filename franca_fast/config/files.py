"""Reading, overriding, comparing and writing configurations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from franca_fast.config.checks import check_config
from franca_fast.config.schema import Config
from franca_fast.config.setting import settings
from franca_fast.errors import InputError, did_you_mean

RECIPES = Path(__file__).parent.parent / "recipes"


def load_config(
    source: Config | Mapping[str, Any] | str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Builds a checked configuration from a file, a mapping or another configuration.

    Args:
        source: path of a YAML file, name of a recipe (see `list_recipes`), a mapping of the same
            form, a `Config`, or None for the defaults. Keys that it leaves out take their defaults.
        overrides: strings `"section.key=value"`, applied in order after `source`.

    Returns:
        A new `Config`; `source` is not changed.

    Raises:
        InputError: a file that is missing or no YAML, an unknown key (the nearest known one is
            named), a value of the wrong type, or values that do not fit together.

    Example:
        >>> load_config(None, ["student.arch=vit_small"]).student.arch
        'vit_small'
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(source, Config):
        source = asdict(source)
    origin = str(source) if isinstance(source, (str, Path)) else "configuration"
    merged = OmegaConf.structured(Config)
    try:
        if isinstance(source, Mapping):
            merged = OmegaConf.merge(merged, OmegaConf.create(dict(source)))
        elif source is not None:
            merged = OmegaConf.merge(merged, _read_yaml(_find_file(source)))
        for override in overrides:
            origin = f"override '{override}'"
            merged = OmegaConf.merge(merged, _parse_override(override))
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:
        raise _readable(origin, error) from error
    assert isinstance(config, Config)
    check_config(config)
    return config


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, as `load_config` takes them."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_summary(name: str) -> str:
    """The first sentence of a recipe's own explanation.

    Example:
        >>> recipe_summary("vitl14_in21k")
        'Franca ViT-L/14 on ImageNet-21K.'
    """
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return re.split(r"[.:] ", text, maxsplit=1)[0] + "."


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, every key included; `load_config` reads it back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Every value of the configuration under its dotted key."""
    return {key: value for key, value, _ in settings(config)}


def differing_keys(old: Config, new: Config) -> list[str]:
    """Keys whose values would change the result of a run, as `"key (old -> new)"`.

    (How many images each process takes goes with their number; that the images of a step have
    changed is said when it happens.)
    """
    before = flatten(old)
    return [
        f"{key} ({before[key]} -> {value})"
        for key, value, setting in settings(new)
        if not setting.resumable and before[key] != value
    ]


def _find_file(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in list_recipes():
        return RECIPES / f"{source}.yaml"
    raise InputError(
        f"config file: '{source}'{did_you_mean(str(source), list_recipes())}; accepted: a YAML "
        f"file, or one of the recipes {', '.join(list_recipes())}"
    )


def _read_yaml(path: Path) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"config file: '{path}' cannot be read: {reason}") from error
    if not OmegaConf.is_dict(loaded):
        raise InputError(f"config file: '{path}' holds no keys; accepted: a YAML mapping")
    return loaded


def _parse_override(override: str) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if "=" not in override:
        raise InputError(f"override: '{override}'; accepted: section.key=value")
    try:
        return OmegaConf.from_dotlist([override])
    except YAMLError as error:
        raise InputError(f"override: '{override}'; accepted: a value in YAML") from error


def _readable(origin: str, error: Exception) -> InputError:
    """The error of OmegaConf in one line that names the key and, if unknown, the nearest one."""
    from omegaconf.errors import ConfigKeyError

    key = getattr(error, "full_key", None)
    if isinstance(error, ConfigKeyError) and key:
        return InputError(f"{origin}: unknown configuration key '{key}'{_nearest_key(key)}")
    reason = str(error).splitlines()[0]
    return InputError(f"{origin}: {key}: {reason}" if key else f"{origin}: {reason}")


def _nearest_key(key: str) -> str:
    """A known key that differs only in case or section, else the most similar at its depth."""
    names = list(flatten(Config()))
    sections = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)})
    known = list(dict.fromkeys(names + sections))
    leaf = key.rsplit(".", 1)[-1].lower()
    same = [name for name in known if name.lower() == key.lower()]
    same += [name for name in known if name.rsplit(".", 1)[-1].lower() == leaf]
    if same:
        return did_you_mean(same[0], same[:1])
    return did_you_mean(key, [name for name in known if name.count(".") == key.count(".")])
