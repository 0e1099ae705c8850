from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from franca_fast.models import ARCHITECTURES, VisionTransformer

SMALLEST = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRANCA_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FRANCA_FAST_MIRROR", "http://127.0.0.1:1")
    monkeypatch.setitem(ARCHITECTURES, "vit_base", SMALLEST)
    return tmp_path / "cache"


@pytest.fixture
def cached_file(cache: Path) -> Path:
    cache.mkdir()
    file = cache / "franca_vitb14_In21K.pth"
    torch.save(VisionTransformer(img_size=28, **SMALLEST).state_dict(), file)
    return file


def test_list_says_what_is_cached(run, cached_file: Path) -> None:
    lines = run("models").out.splitlines()
    cached = next(line for line in lines if "franca_vitb14_In21K.pth" in line)
    other = next(line for line in lines if "franca_vitl14_Laion600M.pth" in line)
    assert "0 MB" in cached and "research only (RAIL)" in cached
    assert "  no  " in other
    assert any("dinov2_vits14_reg" in line and "Apache-2.0" in line for line in lines)
    withdrawn = [line.split()[1] for line in lines if line.endswith("pth (withdrawn upstream)")]
    assert withdrawn == ["IN21K_518"]
    assert any(line.startswith("vit_large ") and "1215" in line for line in lines)


def test_download_prints_the_path(run, cached_file: Path) -> None:
    assert run("models", "--download", "franca_vitb14:IN21K").out == f"{cached_file}\n"


def test_failed_download_says_where_to_put_the_file(run, cache: Path) -> None:
    outcome = run("models", "--download", "franca_vitl14")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"By hand: put franca_vitl14_Laion600M.pth from http://127.0.0.1:1 into '{cache}'" in (
        outcome.err
    )
    assert "weights: unknown 'X'" in run("models", "--download", "franca_vitl14:X").err
    assert "--rasa needs --download" in run("models", "--rasa").err


def test_verify(run, cached_file: Path) -> None:
    record = cached_file.with_name(cached_file.name + ".sha256")
    assert "no hash recorded" in run("models", "--verify").out
    digest = hashlib.sha256(cached_file.read_bytes()).hexdigest()
    record.write_text(f"{digest}  {cached_file.name}\n")
    assert "unchanged" in run("models", "--verify").out
    record.write_text(f"{'0' * 64}  {cached_file.name}\n")
    outcome = run("models", "--verify")
    assert outcome.code == 2
    assert str(cached_file) in outcome.err
    cached_file.unlink()
    assert "empty" in run("models", "--verify").out


def test_models(run) -> None:
    out = run("models").out
    assert "franca_vitl14" in out and "vit_7b" in out and "RAIL" in out
