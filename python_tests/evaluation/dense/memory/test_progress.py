from __future__ import annotations

from pathlib import Path

import pytest
import torch

from franca_fast.evaluation.dense.memory import progress as search_progress
from franca_fast.evaluation.dense.memory.progress import SearchProgress

FACTS = {"weights": "ab", "k": 30}
STATE = {"numbers": torch.arange(4).view(2, 2).T, "similarity": torch.rand(2, 2).double()}


def test_a_state_comes_back_under_the_same_facts_alone(tmp_path: Path) -> None:
    SearchProgress(tmp_path, FACTS).save(STATE)
    found = SearchProgress(tmp_path, dict(reversed(FACTS.items()))).load()
    assert found is not None and found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert SearchProgress(tmp_path, {**FACTS, "k": 29}).load() is None
    SearchProgress(tmp_path, FACTS).clear()
    assert SearchProgress(tmp_path, FACTS).load() is None
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("where", ["no folder", "weights that nobody sees"])
def test_nothing_is_kept_where_it_could_not_be_known_again(where: str, tmp_path: Path) -> None:
    folder, facts = (None, FACTS) if where == "no folder" else (tmp_path, {"weights": None})
    progress = SearchProgress(folder, facts)
    progress.save(STATE)
    assert progress.load() is None and list(tmp_path.iterdir()) == []
    progress.clear()


def test_it_saves_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(search_progress.time, "monotonic", lambda: now)
    progress, made = SearchProgress(tmp_path, FACTS), []

    def state() -> dict[str, torch.Tensor]:
        made.append(now)
        return STATE

    for now in (110.0, 399.0, 400.0, 410.0, 699.0, 700.0):  # noqa: B007
        progress.save_when_due(state)
    assert made == [400.0, 700.0]


def test_what_a_killed_process_was_writing_is_taken_away(tmp_path: Path) -> None:
    progress = SearchProgress(tmp_path, FACTS)
    progress.save(STATE)
    (file,) = tmp_path.glob("progress/*.safetensors")
    (file.parent / f".{file.stem}-abc.safetensors").write_bytes(b"half of it")
    other = file.parent / ".another-abc.safetensors"
    other.write_bytes(b"")
    assert progress.load() is not None
    assert set(file.parent.iterdir()) == {file, other}


def test_two_processes_may_search_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, other = (SearchProgress(tmp_path, FACTS) for _ in range(2))
    progress.save(STATE)
    write = search_progress.save_safetensors

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        other.load()

    monkeypatch.setattr(search_progress, "save_safetensors", slow)
    progress.save({"numbers": torch.zeros(1)})
    found = other.load()
    assert found is not None and found.keys() == STATE.keys()


def test_a_damaged_file_is_as_none(tmp_path: Path) -> None:
    progress = SearchProgress(tmp_path, FACTS)
    progress.save(STATE)
    (file,) = (file for file in tmp_path.rglob("*") if file.is_file())
    file.write_bytes(file.read_bytes()[:-7])
    assert progress.load() is None
    file.write_bytes(b"")
    assert progress.load() is None
