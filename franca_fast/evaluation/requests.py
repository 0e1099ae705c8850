"""A protocol, its data and its settings in one line of text, as configurations have it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from franca_fast.errors import InputError, did_you_mean
from franca_fast.evaluation.encoders import Encoder
from franca_fast.evaluation.evaluate import evaluate, find_protocol
from franca_fast.evaluation.protocol import Reading, check_roles, parse_settings

_NAME, _DIMS = "name", "dims"


@dataclass(frozen=True)
class Request:
    """What one line asks for.

    Attributes:
        protocol: the protocol's name.
        name: under which the figures are kept; the protocol's where no other is given.
        sources: role -> sources.
        settings: those that differ from the protocol's.
        dims: widths; None leaves them to the caller.
    """

    protocol: str
    name: str
    sources: Mapping[str, Sequence[str]]
    settings: Mapping[str, str]
    dims: tuple[int, ...] | None

    def figures(
        self, encoder: Encoder, dims: Sequence[int] | None, reading: Reading
    ) -> dict[str, float]:
        """Runs the protocol.

        Args:
            encoder: on its device.
            dims: widths where the request has none, and the protocol can have some.
            reading: how images are read.

        Returns:
            "<name>/<width>/<figure>" -> value.
        """
        if self.dims is not None:
            dims = self.dims
        elif not self._has_widths():
            dims = None
        result = evaluate(
            self.protocol,
            encoder,
            self.sources,
            self.settings,
            dims=dims,
            reading=reading,
        )
        return {
            f"{self.name}/{width}/{figure}": value
            for width, row in result.figures.items()
            for figure, value in row.items()
        }

    def _has_widths(self) -> bool:
        protocol = find_protocol(self.protocol)
        return protocol.has_widths(parse_settings(protocol.settings, self.settings))


def parse_request(text: str) -> Request:
    """Reads a line: the protocol, then `role=SOURCE` and `setting=value` in any order.

    A role may be given several times; `dims=8,16` chooses widths and `name=NAME` the name of the
    figures. Quotes hold a source with spaces together.

    Raises:
        InputError: an unknown protocol, role or setting, a value that does not fit, or data that
            are missing.

    Example:
        >>> request = parse_request("knn train=a/train test=a/val ks=10,20 dims=8,128")
        >>> request.sources, request.settings, request.dims
        ({'train': ['a/train'], 'test': ['a/val']}, {'ks': '10,20'}, (8, 128))
    """
    try:
        first, *words = shlex.split(text)
    except ValueError as error:  # nothing, or a quote that is not closed
        raise InputError(
            f"protocols: '{text}', {error}; accepted: PROTOCOL role=SOURCE ..."
        ) from None
    protocol = find_protocol(first)
    roles = [role.name for role in protocol.roles]
    sources: dict[str, list[str]] = {}
    settings: dict[str, str] = {}
    others: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"protocols: '{word}' in '{text}'; accepted: NAME=VALUE")
        if name in roles:
            sources.setdefault(name, []).append(value)
        else:
            (others if name in (_NAME, _DIMS) else settings)[name] = value
    check_roles(protocol, sources)
    _check_names(settings, protocol.settings, roles)
    parse_settings(protocol.settings, settings)
    dims = others.get(_DIMS)
    return Request(
        protocol.name,
        others.get(_NAME, protocol.name),
        sources,
        settings,
        None if dims is None else parse_dims(dims),
    )


def parse_dims(text: str) -> tuple[int, ...]:
    """Widths from "8,16,32".

    Raises:
        InputError: other than whole numbers from 1 on.

    Example:
        >>> parse_dims("8,16")
        (8, 16)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"dims: '{text}'; accepted: widths from 1 on, such as 8,16,32")
    return tuple(int(part) for part in parts)


def _check_names(settings: Mapping[str, str], kind: type[Any], roles: Sequence[str]) -> None:
    known = [*roles, *kind.__dataclass_fields__, _DIMS, _NAME]
    for name in settings:
        if name not in known:
            raise InputError(
                f"protocols: '{name}'{did_you_mean(name, known)}; accepted: {', '.join(known)}"
            )
