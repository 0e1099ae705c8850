"""What the tests of the command line share: images, a small configuration, and `run`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from franca_fast.cli.main import main
from franca_fast.hub import save_backbone
from franca_fast.models import ARCHITECTURES, VisionTransformer

SMALLEST = {"embed_dim": 32, "depth": 1, "num_heads": 2}
TINY = """
student: {arch: vit_tiny, patch_size: 14, ffn_layer: swiglufused, drop_path_rate: 0.1}
crops: {global_crops_size: 28, local_crops_size: 14, local_crops_number: 2}
dino: {head_n_prototypes: 64, head_hidden_dim: 16, head_bottleneck_dim: 8}
ibot:
  {separate_head: true, head_n_prototypes: 64, head_hidden_dim: 16, head_bottleneck_dim: 8}
train:
  dataset_path: "FashionMNIST:split=TEST"
  batch_size_per_gpu: 4
  num_workers: 0
  centering: sinkhorn_knopp
  OFFICIAL_EPOCH_LENGTH: 4
  total_steps: 4
  checkpoint_every: 2
  tensorboard: false
optim: {epochs: 1, warmup_epochs: 0}
"""


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def fails(run: Callable[..., Outcome], tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail in one line, with code 2, and change nothing."""

    def call(*argv: object) -> str:
        before = snapshot(tmp_path)
        outcome = run(*argv)
        assert outcome.code == 2
        assert outcome.out == ""
        assert outcome.err.startswith("franca-fast: error: ")
        assert outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
        assert snapshot(tmp_path) == before
        return outcome.err

    return call


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content (None for folders)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that trains in a second; "vit_tiny" is even smaller than its name says."""
    monkeypatch.setitem(ARCHITECTURES, "vit_tiny", SMALLEST)
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    model = VisionTransformer(img_size=28, embed_dim=32, depth=1, num_heads=2)
    return save_backbone(model, tmp_path / "model" / "teacher")


def png(label: int, size: int = 28) -> bytes:
    """A PNG whose brightness tells its label."""
    pixels = torch.randint(0, 60, (size, size), dtype=torch.uint8) + 19 * label
    file = io.BytesIO()
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of four images."""
    folder = tmp_path / "images"
    for i in range(8):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(9 * (i % 2)))
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of 40 images in ten classes, in the form of the bundled ones."""
    file = tmp_path / "shard.tar"
    with tarfile.open(file, "w") as tar:
        for i in range(40):
            for suffix, data in ((".png", png(i % 10)), (".cls", str(i % 10).encode())):
                member = tarfile.TarInfo(f"{i:03d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file
