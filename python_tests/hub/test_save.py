from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from franca_fast.hub import save_backbone
from franca_fast.models import VisionTransformer


def test_failed_save_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = VisionTransformer(img_size=28, embed_dim=32, depth=2, num_heads=2)
    weights = save_backbone(backbone, tmp_path / "teacher")
    before = weights.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_backbone(backbone, tmp_path / "teacher")
    assert weights.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
