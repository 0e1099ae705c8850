"""What all protocols have in common: what they read, how, and how their settings are given."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.result import Result

Source = str | os.PathLike[str]
Sources = Sequence[Source]
_TRUE, _FALSE, _NONE = ("true", "yes", "on"), ("false", "no", "off"), ("none", "null")


@dataclass(frozen=True)
class Role:
    """One kind of data that a protocol reads.

    Attributes:
        name: such as "train"; the option is `--train`.
        help: for the help.
        required: whether the protocol needs it.
        several: whether it may be given in several sources.
        opens: finds a source without reading its images, or raises InputError; sources are tried
            with it before a model is loaded or trained. None tries nothing.
    """

    name: str
    help: str
    required: bool = True
    several: bool = True
    opens: Callable[[Source], object] | None = None


@dataclass(frozen=True)
class Reading:
    """How images are read and features computed; results depend on none of it but the precision.

    Attributes:
        batch_size: images at once.
        num_workers: threads that prepare images.
        precision: "fp32", "bf16" or "auto", see `encoders.precision_of`.
        progress: whether to show a bar on stderr.
        features_cache: a folder that keeps features; a later evaluation of the same weights, data,
            size and transform takes them from there, and an interrupted one goes on.
        decoding: `max_image_pixels` and `levels` where they differ from `embed`'s.

    Raises:
        InputError: a number that is too small.
    """

    batch_size: int = 64
    num_workers: int = 2
    precision: str = "fp32"
    progress: bool = False
    features_cache: str | os.PathLike[str] | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("num_workers", self.num_workers, 0),
        ):
            if value < least:
                raise InputError(f"{name}: {value}; accepted: {least} or more")


Run = Callable[[Encoder, Mapping[str, Sources], Any, Sequence[int] | None, Reading], Result]


@dataclass(frozen=True)
class Protocol:
    """A protocol, as the command line and training find it.

    Attributes:
        name: as users type it.
        summary: one line for the help.
        settings: a frozen dataclass whose defaults are the protocol's; it refuses bad values.
        roles: what it reads.
        run: called with the encoder, {role: sources}, the settings, widths or None, and a
            `Reading`.
        has_widths: whether features can be cut with these settings.
    """

    name: str
    summary: str
    settings: type[Any]
    roles: tuple[Role, ...]
    run: Run
    has_widths: Callable[[Any], bool] = lambda settings: True


def check_roles(
    protocol: Protocol, sources: Mapping[str, Source | Sources]
) -> dict[str, list[Source]]:
    """What was given for each role, as lists.

    Raises:
        InputError: a role that the protocol does not have, or one that it needs and did not get.
    """
    known = [role.name for role in protocol.roles]
    for name in sources:
        if name not in known:
            raise InputError(
                f"data of {protocol.name}: '{name}'{did_you_mean(name, known)}; accepted: "
                f"{', '.join(known)}"
            )
    for role in protocol.roles:
        if role.required and role.name not in sources:
            raise InputError(f"data of {protocol.name}: no {role.name}; accepted: {role.help}")
    lists = {
        name: [given] if isinstance(given, (str, os.PathLike)) else list(given)
        for name, given in sources.items()
    }
    for role in protocol.roles:
        n = len(lists.get(role.name, ()))
        if n > 1 and not role.several:
            raise InputError(f"data of {protocol.name}: {n} sources of {role.name}; accepted: one")
    return lists


def on_sources_of(function: Callable[..., Result], *roles: str) -> Run:
    """The `run` of a protocol whose function takes one source for each role.

    Args:
        function: called with the encoder, the sources, the settings, `dims` and `reading`.
        roles: in the order of its arguments.
    """

    def run(
        encoder: Encoder,
        sources: Mapping[str, Sources],
        settings: Any,
        dims: Sequence[int] | None,
        reading: Reading,
    ) -> Result:
        given = [sources[role][0] for role in roles]
        return function(encoder, *given, settings, dims=dims, reading=reading)

    return run


def check_data(protocol: Protocol, sources: Mapping[str, Sources]) -> None:
    """Tries whether the sources are there.

    Raises:
        InputError: nothing at a path, or another layout than the role's.
    """
    for role in protocol.roles:
        if role.opens is not None:
            for one in sources.get(role.name, ()):
                role.opens(one)


def parse_settings(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """Settings of a protocol from values, or from their text.

    Args:
        kind: the dataclass.
        given: name -> value. Text is read as the field's type: "10,20" is a tuple, "none" is None.

    Raises:
        InputError: an unknown setting, or a value that does not fit.

    Example:
        >>> @dataclass
        ... class Settings:
        ...     ks: tuple[int, ...] = (10,)
        >>> parse_settings(Settings, {"ks": "5,20"})
        Settings(ks=(5, 20))
    """
    types_of = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    values = dict[str, Any]()
    for name, value in given.items():
        if name not in names:
            raise InputError(
                f"setting: '{name}'{did_you_mean(name, names)}; accepted: {', '.join(names)}"
            )
        values[name] = _parsed(name, value, types_of[name]) if isinstance(value, str) else value
    return kind(**values)


def _parsed(name: str, text: str, kind: Any) -> Any:
    choices = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if type(None) in choices and text.lower() in _NONE:
            return None
        kind = next(choice for choice in choices if choice is not type(None))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_parsed(name, part.strip(), inner) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise InputError(f"{name}: '{text}'; accepted: true or false")
        return text.lower() in _TRUE
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise InputError(f"{name}: '{text}'; accepted: {what}") from None


def check_dims(dims: Sequence[int] | None, width: int) -> tuple[int, ...]:
    """The widths to evaluate at.

    Raises:
        InputError: none, or one that is not between 1 and the features' width.

    Example:
        >>> check_dims(None, 128), check_dims([8, 128], 128)
        ((128,), (8, 128))
    """
    chosen = (width,) if dims is None else tuple(dict.fromkeys(dims))
    if not chosen or not all(0 < m <= width for m in chosen):
        raise InputError(f"dims: {tuple(chosen)}; accepted: each from 1 to the width {width}")
    return chosen
