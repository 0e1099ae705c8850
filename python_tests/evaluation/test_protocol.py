from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from franca_fast.errors import InputError
from franca_fast.evaluation.protocol import (
    Protocol,
    Reading,
    Role,
    check_dims,
    check_roles,
    on_sources_of,
    parse_settings,
)


@dataclass(frozen=True)
class Settings:
    k: int = 30
    share: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    size: int | None = None
    own: bool = True
    kind: str = "a"


def test_text_becomes_what_a_setting_is() -> None:
    text = {"k": "5", "share": "1e-3", "sizes": "4, 5", "size": "7", "own": "no", "kind": "b"}
    assert parse_settings(Settings, text) == Settings(5, 1e-3, (4, 5), 7, False, "b")
    assert parse_settings(Settings, {"size": "none", "k": 4}) == Settings(k=4)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"kk": "1"}, r"setting: 'kk' \(did you mean 'k'\?\); accepted: k, share"),
        ({"k": "x"}, "k: 'x'; accepted: a whole number"),
        ({"sizes": "1,x"}, "sizes: 'x'; accepted: a whole number"),
        ({"share": "x"}, "share: 'x'; accepted: a number"),
        ({"own": "x"}, "own: 'x'; accepted: true or false"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        parse_settings(Settings, given)


def test_roles() -> None:
    roles = (Role("train", "images to learn from"), Role("val", "images", required=False))
    protocol = Protocol("p", "", Settings, roles, lambda *_: None)  # type: ignore[arg-type,return-value]
    assert check_roles(protocol, {"train": "a"}) == {"train": ["a"]}
    assert check_roles(protocol, {"train": ["a", "b"], "val": "c"})["train"] == ["a", "b"]
    with pytest.raises(InputError, match=r"data of p: 'vall' .did you mean 'val'"):
        check_roles(protocol, {"vall": "a"})
    with pytest.raises(InputError, match="data of p: no train; accepted: images to learn from"):
        check_roles(protocol, {"val": "a"})


def test_one_source_where_one_is_read() -> None:
    roles = (Role("data", "a data set", several=False),)

    def measured(encoder: Any, data: str, settings: Any, **more: Any) -> Any:
        return encoder, data, settings, more["dims"], more["reading"]

    protocol = Protocol("video", "", Settings, roles, on_sources_of(measured, "data"))
    with pytest.raises(InputError, match="data of video: 2 sources of data; accepted: one"):
        check_roles(protocol, {"data": ["a", "b"]})
    given = check_roles(protocol, {"data": "a"})
    reading = Reading()
    handed = protocol.run("encoder", given, "settings", (8,), reading)  # type: ignore[arg-type]
    assert handed == ("encoder", "a", "settings", (8,), reading)


def test_widths() -> None:
    assert check_dims(None, 8) == (8,) and check_dims([4, 8, 4], 8) == (4, 8)
    for dims in ([], [0], [9]):
        with pytest.raises(InputError, match=r"dims: .*accepted: each from 1 to the width 8"):
            check_dims(dims, 8)


def test_reading() -> None:
    with pytest.raises(InputError, match="batch_size: 0; accepted: 1 or more"):
        Reading(batch_size=0)
    with pytest.raises(InputError, match="num_workers: -1; accepted: 0 or more"):
        Reading(num_workers=-1)
