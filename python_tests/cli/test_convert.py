from __future__ import annotations

from pathlib import Path

from franca_fast.hub import load_head, load_model

CHECKPOINT = Path(__file__).parents[1] / "golden" / "teacher_checkpoint.pth"


def test_convert_says_what_it_wrote(run, tmp_path: Path) -> None:
    ours = tmp_path / "a.safetensors"
    outcome = run("convert", CHECKPOINT, ours, "--num-heads", 4, "--keep-heads")
    assert outcome.out == f"{ours}: backbone, dino_head\n"
    assert load_model(ours).num_heads == 4
    assert load_head(ours).out_dims == (32, 64, 128, 256, 512)
    back = tmp_path / "b.pth"
    outcome = run("convert", ours, back)
    assert outcome.out == (
        f"{back}: backbone\nTo load it: load_model('{back}', architecture={{'num_heads': 4}})\n"
    )


def test_what_is_refused(fails, tmp_path: Path) -> None:
    (tmp_path / "there.pth").touch()
    assert "num_heads" in fails("convert", CHECKPOINT, tmp_path / "a.pth")
    assert "exists" in fails("convert", CHECKPOINT, tmp_path / "there.pth", "--num-heads", 4)
    assert "ends in" in fails("convert", CHECKPOINT, tmp_path / "a.txt", "--num-heads", 4)
