"""The folder of a session: whose it is, and when it cannot be used."""

from __future__ import annotations

import pytest

from bench.gpu import record
from bench.gpu.folder import taken
from python_tests.bench.sessions import run


def refused(monkeypatch, capsys, out, *arguments):
    """What is said when nothing runs."""
    assert run(monkeypatch, "--part=facts", "--device=cpu", "--out", out, *arguments) == 2
    said = capsys.readouterr().out
    assert said.startswith(f"python -m bench.gpu: --out {out} ") and said.count("\n") == 1
    return said


def test_two_sessions_do_not_share_a_folder(monkeypatch, capsys, tmp_path):
    with taken(tmp_path, "cpu") as scratch:
        assert "in use" in refused(monkeypatch, capsys, tmp_path)
        assert scratch.exists()
    assert record.read(tmp_path) == []
    (tmp_path / ".session-killed").mkdir()
    with taken(tmp_path, "cpu") as scratch:  # the next one
        assert [*tmp_path.glob(".*")] == [scratch]
    assert [file.name for file in tmp_path.iterdir()] == [record.ROWS]


def test_a_dry_run_leaves_the_figures_of_a_gpu_alone(monkeypatch, capsys, tmp_path):
    record.append(tmp_path, {"part": record.SESSION, "device": "cuda"})
    record.append(tmp_path, {"part": "facts", "fact": "name", "value": "a card"})
    before = (tmp_path / record.ROWS).read_bytes()
    said = refused(monkeypatch, capsys, tmp_path)
    assert "--device cuda" in said and "--device cpu" in said
    assert (tmp_path / record.ROWS).read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in refused(monkeypatch, capsys, tmp_path / "file")
    assert "Not a directory" in refused(monkeypatch, capsys, tmp_path / "file" / "below")


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_full_disk_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, disk, size):
    disk[0] = size
    assert "No space left on device" in refused(monkeypatch, capsys, tmp_path)
