"""Settings that are text: taken as they are written, whatever YAML or OmegaConf makes of it.

`{00..99}.tar`, `*.tar`, `x #1`, `0123` and `${DATA}/x` are names of files, and something else in
YAML or OmegaConf. So text never passes through either of them as a value.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, get_type_hints

from franca_fast.config.schema import Config
from franca_fast.errors import InputError

Texts = dict[str, str | None]
_TAG = "tag:yaml.org,2002:"
_KEY_OF_LINE = re.compile(r"\s*([\w.]+)\s*:")


@functools.cache
def text_settings() -> Mapping[str, bool]:
    """Every key whose value is text, and whether it may be null.

    Example:
        >>> text_settings()["train.dataset_path"]
        False
    """
    return dict(_text_settings(Config, ""))


def _text_settings(section: Any, prefix: str) -> Iterator[tuple[str, bool]]:
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from _text_settings(kind, f"{prefix}{name}.")
        elif kind in (str, str | None):
            yield f"{prefix}{name}", kind is not str


def override_text(key: str, written: str) -> str | None:
    """The value of a text setting in an override: what is written; null where it may be null."""
    return None if written == "null" and text_settings()[key] else written


def split_mapping(values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], Texts]:
    """Parts nested values into what is no text setting, and the text settings by their keys.

    Raises:
        InputError: a text setting is given something else.
    """
    rest: dict[str, Any] = {}
    texts: Texts = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if "." not in str(name) and key in text_settings():
            texts[key] = _checked(key, os.fsdecode(value) if _is_path(value) else value)
        elif isinstance(value, Mapping):
            rest[name], inner = split_mapping(value, f"{key}.")
            texts |= inner
        else:
            rest[name] = value
    return rest, texts


def split_yaml(content: str) -> tuple[str, Texts]:
    """The same for YAML: what is left is a document with empty text settings.

    Raises:
        InputError: a text setting is given something that YAML reads as no text.
        YAMLError: it is no YAML.
    """
    import yaml  # type: ignore[import-untyped]

    root = yaml.compose(content, Loader=yaml.SafeLoader)
    if root is None:
        return "", {}
    # All first: a section may stand in several places, by an alias.
    places = list(_places(root, "", set()))
    texts = {key: _read(key, section.value[index][1]) for key, section, index in places}
    for _, section, index in places:
        section.value[index] = (section.value[index][0], yaml.ScalarNode(f"{_TAG}str", ""))
    return yaml.serialize(root, Dumper=yaml.SafeDumper), texts


def text_on_line(line: str) -> str | None:
    """The text setting that a line of YAML gives, as far as the line alone tells."""
    found = _KEY_OF_LINE.match(line)
    leaf = f".{found[1]}" if found else "."
    keys = [key for key in text_settings() if f".{key}".endswith(leaf)]
    return keys[0] if len(keys) == 1 else None


def _places(node: Any, prefix: str, seen: set[tuple[int, str]]) -> Iterator[tuple[str, Any, int]]:
    """Text settings below a node: key, section, place in it; what wins comes later."""
    if not isinstance(getattr(node, "value", None), list) or (id(node), prefix) in seen:
        return
    seen.add((id(node), prefix))  # aliases may repeat without end
    entries = [entry for entry in enumerate(node.value) if isinstance(entry[1], tuple)]
    for _, (name, value) in entries:
        if name.tag == f"{_TAG}merge":
            sections = value.value if isinstance(value.value, list) else []
            merged = [value, *(part for part in sections if not isinstance(part, tuple))]
            for part in reversed(merged):
                yield from _places(part, prefix, seen)
    for index, (name, value) in entries:
        key = f"{prefix}{name.value}"
        if "." not in str(name.value) and key in text_settings():
            yield key, node, index
        elif any(setting.startswith(f"{key}.") for setting in text_settings()):
            yield from _places(value, f"{key}.", seen)


def _read(key: str, node: Any) -> str | None:
    """The text that a node of YAML holds."""
    import yaml

    kind = node.tag.removeprefix(_TAG)
    if kind in ("str", "timestamp"):  # OmegaConf knows no dates either
        return node.value
    if kind == "null":
        return _checked(key, None)
    try:
        made = yaml.safe_load(yaml.serialize(node, Dumper=yaml.SafeDumper))
    except yaml.YAMLError:
        made = node.value
    if isinstance(node.value, str):
        if str(made) == node.value and kind in ("int", "float"):
            return node.value
        raise InputError(
            f"{key}: {node.value}, which YAML reads as {made!r} ({kind}); accepted: text, here in "
            "quotes"
        )
    raise InputError(f"{key}: {made!r}, as YAML reads it ({kind}); accepted: text, here in quotes")


def _checked(key: str, value: Any) -> str | None:
    if isinstance(value, str) or (value is None and text_settings()[key]):
        return value
    if value is None:
        raise InputError(f"{key}: null; accepted: text, '' for none")
    raise InputError(f"{key}: {value!r} ({type(value).__name__}); accepted: text")


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike)
