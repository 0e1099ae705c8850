"""Reading, overriding, comparing and writing configurations."""

from __future__ import annotations

import itertools
import logging
import operator
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from franca_fast.config.checks import check_config
from franca_fast.config.schema import Config
from franca_fast.config.setting import settings
from franca_fast.config.text_settings import (
    Texts,
    override_text,
    split_mapping,
    split_yaml,
    text_on_line,
    text_settings,
)
from franca_fast.errors import InputError, did_you_mean
from franca_fast.paths import MISSING, why_unreadable

logger = logging.getLogger(__name__)

_INTERPOLATION = re.compile(r"\$\{\w*[.:]")  # OmegaConf's, and not a variable's name

RECIPES = Path(__file__).parent.parent / "recipes"


def load_config(
    source: Config | Mapping[str, Any] | str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Builds a checked configuration from a file, a mapping or another configuration.

    Args:
        source: path of a YAML file, name of a recipe (see `list_recipes`), a mapping of the same
            form, a `Config`, or None for the defaults. Keys that it leaves out take their defaults.
        overrides: strings `"section.key=value"`, applied in order after `source`. The value is
            YAML; for a setting that is text it is that text, to the letter.

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
    texts: Texts = {}
    try:
        if source is not None:
            given, texts = (
                split_mapping(source)
                if isinstance(source, Mapping)
                else _read_yaml(_find_file(source))
            )
            merged = OmegaConf.merge(merged, OmegaConf.create(given))
        for override in overrides:
            origin = f"override '{override}'"
            given, more = _parse_override(override)
            merged = OmegaConf.merge(merged, OmegaConf.create(given))
            texts |= more
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:
        raise _readable(origin, error) from error
    assert isinstance(config, Config)
    for key, text in texts.items():
        section, _, name = key.rpartition(".")
        setattr(operator.attrgetter(section)(config), name, text)
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
    import yaml  # type: ignore[import-untyped]

    class Dumper(yaml.SafeDumper):
        """Quotes what other readers than PyYAML, OmegaConf's among them, take for a number."""

        def represent_text(self, text: str) -> yaml.Node:
            return self.represent_scalar("tag:yaml.org,2002:str", text, style=_style(text))

    Dumper.add_representer(str, Dumper.represent_text)
    return yaml.dump(
        asdict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )


def _style(text: str) -> str | None:
    """How YAML shall quote a text; None where it may stand plain."""
    if not text.isprintable():
        return '"'
    with suppress(ValueError):
        return "'" if float(text) is not None else None
    return None


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
    if os.path.isfile(path):
        return path
    if str(source) in list_recipes():
        return RECIPES / f"{source}.yaml"
    reason = why_unreadable(path) or "a folder"
    if reason != MISSING:
        raise InputError(f"config file '{source}': {reason}")
    raise InputError(
        f"config file: '{source}'{did_you_mean(str(source), list_recipes())}; accepted: a YAML "
        f"file, or one of the recipes {', '.join(list_recipes())}"
    )


def _read_yaml(path: Path) -> tuple[Any, Texts]:
    """The text settings of a YAML file, and the rest of it."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    content = ""
    try:
        content = path.read_text(encoding="utf-8")
        rest, texts = split_yaml(content)
        loaded = OmegaConf.create(rest)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(
            f"config file: '{path}' cannot be read: {reason}{_quotes_missing(content, error)}"
        ) from error
    except InputError as error:
        raise InputError(f"config file '{path}': {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise InputError(f"config file: '{path}' holds no keys; accepted: a YAML mapping")
    for key, text in texts.items():
        if _INTERPOLATION.search(text or ""):
            logger.warning("%s: '%s' is taken as it is; text is not interpolated", key, text)
    return loaded, texts


def _quotes_missing(content: str, error: Exception) -> str:
    """Names the text setting in whose line YAML itself finds a mistake."""
    import yaml

    if not isinstance(error, (yaml.parser.ParserError, yaml.scanner.ScannerError)):
        return ""
    lines = content.splitlines()
    for mark in (error.problem_mark, error.context_mark):
        if mark is not None and mark.line < len(lines) and (key := text_on_line(lines[mark.line])):
            return f"; {key} is text, and in quotes YAML takes it as it is"
    return ""


def _parse_override(override: str) -> tuple[Any, Texts]:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    key, sign, written = override.partition("=")
    if not sign:
        raise InputError(f"override: '{override}'; accepted: section.key=value")
    if key in text_settings():
        return {}, {key: override_text(key, written)}
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([override]), resolve=False)
    except YAMLError as error:
        raise InputError(f"override: '{override}'; accepted: a value in YAML") from error
    return split_mapping(cast("dict[str, Any]", parsed))


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
    if key in known:
        return "; accepted: sections in one another, {'train': {'seed': 1}} for train.seed"
    leaf = key.rsplit(".", 1)[-1].lower()
    same = [name for name in known if name.lower() == key.lower()]
    same += [name for name in known if name.rsplit(".", 1)[-1].lower() == leaf]
    if same:
        return did_you_mean(same[0], same[:1])
    return did_you_mean(key, [name for name in known if name.count(".") == key.count(".")])
