"""Settings that are text are that text, from wherever it comes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from franca_fast.config import text_settings as module
from franca_fast.config.files import load_config, to_yaml
from franca_fast.config.schema import TrainConfig
from franca_fast.config.text_settings import (
    override_text,
    split_mapping,
    split_yaml,
    text_on_line,
    text_settings,
)
from franca_fast.errors import InputError

KEY = "train.dataset_path"
# Each is something else in YAML, in OmegaConf, or for a writer of YAML.
TEXTS = [
    "{00000..00099}.tar",
    "*.tar",
    "x: y",
    "x #1",
    "[a]",
    "- a",
    "!tag",
    "&a",
    '"quoted"',
    "'",
    "yes",
    "0123",
    "1e3",
    "1_000",
    "2024-01-01",
    "12:30:00",
    ".inf",
    "~/data",
    "~",
    "null",
    "",
    " x ",
    "${VAR}/{a,b}.tar",
    "${train.seed}",
    "${oc.env:HOME}",
    "\\${x",
    "${",
    "a=b",
    "<<",
    "---",
    "%x",
    "| a",
    "> x",
    "? a",
    "@a",
    "`a",
    "a\nb\n",
    "\ttab",
    "\x00\x1b\x7f\x85\u2028\ufeff",
    "\udcff\udce9.tar",
    "\ud83d\ude00",
    "é漢😀\U0010ffff",
]
ALPHABET = (
    "ab:#-{}[]*&!|>'\"%@`,?$\\/ .~=0123eEyn\n\r\t\x00\x85\u2028\ufeff\udc80\udcff\ud83dé漢😀\x7f"
)


def random_texts(number: int, longest: int) -> list[str]:
    draw = random.Random(0)
    return [
        "".join(draw.choice(ALPHABET) for _ in range(draw.randrange(longest)))
        for _ in range(number)
    ]


def text_of(content: str) -> Any:
    return split_yaml(content)[1][KEY]


@pytest.mark.parametrize("text", TEXTS)
def test_every_way_in_keeps_the_text(text: str) -> None:
    config = load_config(None, [f"{KEY}={text}"])
    assert config.train.dataset_path == text
    assert load_config({"train": {"dataset_path": text}}) == config
    assert load_config(config) == config


@pytest.mark.parametrize("text", [*TEXTS, *random_texts(8, 12), *random_texts(2, 200)])
def test_text_comes_back_from_the_file_that_a_run_writes(tmp_path: Path, text: str) -> None:
    config = load_config(None, [f"{KEY}={text}", f"MODEL.WEIGHTS={text[::-1]}"])
    assert (config.train.dataset_path, config.MODEL.WEIGHTS) == (text, text[::-1])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", random_texts(200, 20))
def test_random_text_is_the_same_text_in_any_spelling_of_yaml(text: str) -> None:
    section = {"train": {"dataset_path": text}}
    for flow in (True, False):
        for style in ("'", '"'):
            content = yaml.safe_dump(section, default_flow_style=flow, default_style=style)
            assert text_of(content) == text


@pytest.mark.parametrize("text", ["autox", "x: y", "[bf16]", "${x}", ""])
def test_text_with_choices_is_text_and_then_refused_by_its_choices(text: str) -> None:
    with pytest.raises(InputError, match=r"\.autocast: .*accepted: auto, bf16"):
        load_config(None, [f"compute_precision.autocast={text}"])


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("0123", "83 .int"),
        ("yes", "True .bool"),
        ("3.10", "3.1 .float"),
        ("1_000", "1000 .int"),
        ("12:30:00", "45000 .int"),
        ("!!binary aGk=", "b'hi' .binary"),
        ("[a]", r"\['a'\], as YAML reads it"),
        ("{a: b}", r"\{'a': 'b'\}, as YAML reads it"),
        ("!tag x", "'x' .!tag"),
    ],
)
def test_what_yaml_reads_as_something_else_is_refused_with_that(written: str, made: str) -> None:
    with pytest.raises(InputError, match=f"{KEY}: .*{made}.*; accepted: text, here in quotes"):
        split_yaml(f"train:\n  dataset_path: {written}\n")


@pytest.mark.parametrize("written", ["2024-01-01", "2024", "1.5", "1e3", "a #b", "${X}/a"])
def test_what_yaml_would_not_change_needs_no_quotes(written: str) -> None:
    content = f"train:\n  dataset_path: {written}\n"
    assert text_of(content) == written.split(" #")[0]


@pytest.mark.parametrize("written", ["", "null", "~"])
def test_null_in_a_file_is_no_text(written: str) -> None:
    with pytest.raises(InputError, match=f"{KEY}: null; accepted: text, '' for none"):
        split_yaml(f"train:\n  dataset_path: {written}\n")


@pytest.mark.parametrize("value", [83, True, 1.5, None, ["a"], {"a": "b"}, b"x"])
def test_a_mapping_gives_text_or_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=f"^{KEY}: .*accepted: text"):
        split_mapping({"train": {"dataset_path": value}})


def test_a_mapping_may_give_a_path_and_a_section() -> None:
    section = TrainConfig(dataset_path="${x", seed=3)
    rest, texts = split_mapping({"train": section, "MODEL": {"WEIGHTS": Path("a") / "b"}})
    assert (rest["train"]["seed"], texts[KEY]) == (3, "${x")
    assert texts["MODEL.WEIGHTS"] == "a/b"


def test_the_rest_of_a_mapping_stays_and_nothing_is_changed() -> None:
    given = {"train": {"seed": 1, "wandb": "a"}, "optim": {"lr": 1}}
    assert split_mapping(given) == (
        {"train": {"seed": 1}, "optim": {"lr": 1}},
        {"train.wandb": "a"},
    )
    assert given["train"] == {"seed": 1, "wandb": "a"}


def test_text_in_sections_that_an_alias_repeats() -> None:
    content = """
compute_precision:
  student: {backbone: &b {sharding_strategy: FULL_SHARD}}
  teacher:
    backbone: *b
    dino_head: {<<: *b}
    ibot_head: {<<: [*b], sharding_strategy: SHARD_GRAD_OP}
"""
    texts = split_yaml(content)[1]
    prefix = "compute_precision.teacher."
    assert texts["compute_precision.student.backbone.sharding_strategy"] == "FULL_SHARD"
    assert texts[f"{prefix}backbone.sharding_strategy"] == "FULL_SHARD"
    assert texts[f"{prefix}dino_head.sharding_strategy"] == "FULL_SHARD"
    assert texts[f"{prefix}ibot_head.sharding_strategy"] == "SHARD_GRAD_OP"


@pytest.mark.parametrize("content", ["train: &t\n  <<: *t\n", "a: &a {b: *a}", "- a", "a", ""])
def test_odd_documents_hold_no_text(content: str) -> None:
    assert split_yaml(content)[1] == {}


@dataclass
class _Inner:
    """A section with text that may be null."""

    name: str | None = None
    other: str = ""
    size: int = 1


@dataclass
class _Outer:
    """A configuration of one section."""

    inner: _Inner = field(default_factory=_Inner)


def test_null_stays_null_where_it_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(module._text_settings(_Outer, ""))
    assert found == {"inner.name": True, "inner.other": False}
    monkeypatch.setattr(module, "text_settings", lambda: found)
    assert (override_text("inner.name", "null"), override_text("inner.other", "null")) == (
        None,
        "null",
    )
    assert split_mapping({"inner": {"name": None}})[1] == {"inner.name": None}
    assert split_yaml("inner: {name: null}")[1] == {"inner.name": None}
    assert split_yaml("inner: {name: 'null'}")[1] == {"inner.name": "null"}


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("  dataset_path: *.tar", KEY),
        ("WEIGHTS: [", "MODEL.WEIGHTS"),
        ("seed: 1", None),
        ("", None),
    ],
)
def test_a_line_tells_its_text_setting(line: str, key: str | None) -> None:
    assert text_on_line(line) == key


def test_text_settings_are_those_of_the_schema() -> None:
    assert {KEY, "student.arch", "train.wandb", "evaluation.knn_test"} <= text_settings().keys()
    assert not {"train.seed", "dino.nesting_dims", "crops"} & text_settings().keys()
