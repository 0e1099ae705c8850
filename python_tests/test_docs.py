"""README and manual: examples run, commands parse, and what they name is there.

Also the examples in docstrings, which give what they say.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import franca_fast as ff
from franca_fast.cli.main import build_parser
from franca_fast.config.files import differing_keys, flatten, load_config
from franca_fast.config.schema import Config
from franca_fast.errors import RenamedError

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
TRAINING, CHANGES = PAGES["docs/training.md"], "docs/changes.md"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
# Words that begin in one of the folders of this repository.
PATH = re.compile(r"(?<![\w./-])(?:bench|cmake|csrc|docs|franca_fast|python_tests)/[\w./-]*\w")
COMMAND = re.compile(r"^(?:\$ )?(?:\S*/)?(?:franca-fast|torchrun .* -m franca_fast) (.*)$")
MODULE = re.compile(r"python -m ([\w.]+)")
PUBLIC = re.compile(r"\bff((?:\.\w+)+)")
SETTING = re.compile(
    rf"(?<![./\w])(?:{'|'.join(vars(Config()))})(?:\.(?!(?:md|log|py|safetensors)\b)\w+)+"
)
# | *`section.key`* | `default` | meaning |, with the asterisks where the key is ours.
SETTING_ROW = re.compile(r"^\| \*?`([\w.]+)`\*? \| `([^`]+)` \|", re.MULTILINE)
SHARDED = re.compile(r"^compute_precision\.(teacher|student)\.(backbone|\w+_head)\.")


def _found(pattern: re.Pattern[str], pages: dict[str, str] = PAGES) -> list[tuple[str, str]]:
    """(page, what was found in it), each once."""
    pairs = [(page, found) for page, text in pages.items() for found in pattern.findall(text)]
    return list(dict.fromkeys(pairs))


def _lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


BLOCKS = [(page, *block) for page, text in PAGES.items() for block in BLOCK.findall(text)]
EXAMPLES = [(page, code) for page, language, code in BLOCKS if language == "python"]
COMMANDS = [
    (page, command[1])
    for page, language, block in BLOCKS
    if language != "python"
    for line in _lines(block)
    if (command := COMMAND.match(line))
]
PROSE = {page: BLOCK.sub("", text) for page, text in PAGES.items()}
# `franca-fast VERB ...` inside a sentence, which may leave out what the verb needs.
MENTIONS = [
    (page, code.removeprefix("franca-fast "))
    for page, code in _found(CODE, PROSE)
    if code.startswith("franca-fast ")
]


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    """A folder with what the examples name: images, and a model that a demo exported."""
    for name in ("photos", "train/shirts", "train/shoes", "val/shirts", "val/shoes"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 30), (80 * i, 20, 200)).save(folder / f"{i}.png")
    model = ff.models.build_backbone("vit_nano", patch_size=7, img_size=28)
    ff.hub.save_backbone(model, tmp_path / "franca_demo" / "exported" / "teacher")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("page", "code"), EXAMPLES, ids=[f"{p}:{c.strip().splitlines()[-1][:40]}" for p, c in EXAMPLES]
)
def test_example_runs(page: str, code: str, users_folder) -> None:
    exec(compile(code, page, "exec"), {})


def test_every_kind_of_content_was_found() -> None:
    assert len(EXAMPLES) > 10 and len(COMMANDS) > 15 and len(MENTIONS) > 5
    assert len(_found(PATH)) > 20 and len(_found(LINK)) > 20 and len(_found(SETTING)) > 50


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_parses(page: str, command: str) -> None:
    try:
        args, rest = build_parser().parse_known_args(shlex.split(command, comments=True))
    except SystemExit as stop:  # of an option that prints and ends, such as --list
        assert not stop.code
        return
    overrides = [*getattr(args, "overrides", ()), *rest]
    assert all(re.match(r"[\w.]+=", word) for word in overrides), overrides
    if overrides or getattr(args, "config_file", None):
        load_config(getattr(args, "config_file", None) or getattr(args, "recipe", None), overrides)


@pytest.mark.parametrize(("page", "command"), MENTIONS)
def test_mentioned_verb_has_these_options(page: str, command: str) -> None:
    parser = build_parser()
    for word in shlex.split(command):
        if word.startswith("--"):
            assert word in parser._option_string_actions
        kinds = next((a.choices for a in parser._actions if isinstance(a.choices, dict)), None)
        if kinds:
            parser = kinds[word]


def test_links_lead_somewhere() -> None:
    assert [found for found in _found(LINK) if not _leads_somewhere(*found)] == []


def _leads_somewhere(page: str, link: str) -> bool:
    if link.startswith("https://"):
        return True
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    if not target.is_file() or not anchor:
        return target.is_file()
    headings = HEADING.findall(target.read_text(encoding="utf-8"))
    return anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_named_files_exist() -> None:
    assert [found for found in _found(PATH) if not (ROOT / found[1]).exists()] == []


def test_named_modules_exist() -> None:
    modules = _found(MODULE)
    assert [found for found in modules if importlib.util.find_spec(found[1]) is None] == []


def test_named_objects_exist() -> None:
    # Names of an earlier version stand in the first column of the page of changes.
    now = PAGES | {CHANGES: re.sub(r"^\|[^|]*", "", PAGES[CHANGES], flags=re.MULTILINE)}
    assert [found for found in _found(PUBLIC, now) if not _exists(found[1])] == []


def test_old_names_say_what_stands_in_their_place() -> None:
    old = re.findall(r"^\|[^|]*", PAGES[CHANGES], re.MULTILINE)
    names = [found for _, found in _found(PUBLIC, {CHANGES: "\n".join(old)})]
    assert len(names) > 5
    assert [name for name in names if not _exists_or_is_renamed(name)] == []


def _exists_or_is_renamed(name: str) -> bool:
    module, _, attribute = f"franca_fast{name}".rpartition(".")
    if importlib.util.find_spec(module) is None:
        return True  # a method, which says nothing
    try:
        return hasattr(importlib.import_module(module), attribute)
    except RenamedError:
        return True


def _exists(name: str) -> bool:
    found = ff
    for part in name.strip(".").split("."):
        found = getattr(found, part, None)
    return found is not None


def test_named_settings_exist() -> None:
    keys = {_any_network(key) for key in flatten(Config())}
    assert [found for found in _found(SETTING) if found[1] not in keys] == []


def test_the_manual_has_every_setting_with_its_default() -> None:
    # Of the networks' modules the first one, the teacher's backbone, counts.
    settings = {_any_network(key): v for key, v in reversed(flatten(Config()).items())}
    told = {key: yaml.safe_load(default) for key, default in SETTING_ROW.findall(TRAINING)}
    assert told == settings


def _any_network(key: str) -> str:
    return SHARDED.sub("compute_precision.NETWORK.MODULE.", key)


def test_the_manual_lists_what_may_change_on_resume() -> None:
    _, section = TRAINING.split("\n## What may change when a run is resumed\n")
    told = section[: section.index(".\n\n")]
    assert set(re.findall(r"`([\w.]+)`", told)) == set(filter(_may_change, flatten(Config())))


def _may_change(key: str) -> bool:
    before, after = Config(), Config()
    *sections, name = key.split(".")
    part = after
    for section in sections:
        part = getattr(part, section)
    setattr(part, name, "another value")
    return not differing_keys(before, after)


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def _docstring_examples() -> list[str]:
    """Modules with an example; those of the triton backend run with its own tests."""
    names = []
    for module in pkgutil.walk_packages(ff.__path__, "franca_fast."):
        spec = module.module_finder.find_spec(module.name)
        source = Path(spec.origin) if spec and spec.origin else None
        if source is None or source.suffix != ".py" or ".triton" in module.name:
            continue
        if ">>> " in source.read_text(encoding="utf-8"):
            names.append(module.name)
    return names


@pytest.mark.parametrize("name", _docstring_examples())
def test_docstring_examples(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    # Examples show results with torch's default formatting and their own random numbers.
    torch.manual_seed(0)
    outcome = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0 and outcome.attempted > 0
