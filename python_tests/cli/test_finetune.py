"""`franca-fast finetune`."""

from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.hub import load_model


@pytest.fixture
def pretrained(run, config_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    assert run("pretrain", "--config-file", config_file, "--output-dir", folder).code == 0
    return folder


def test_finetune_a_run_in_two_stages(run, pretrained: Path, config_file: Path) -> None:
    weights = pretrained
    for pixels, side in ((56, 4), (84, 6)):
        output = pretrained.with_name(f"run_{pixels}px")
        outcome = run(
            "finetune", weights, "--config-file", config_file, "--output-dir", output,
            "--img-size", pixels, "train.total_steps=2",
        )  # fmt: skip
        assert outcome.code == 0
        assert str(output / "exported" / "teacher.safetensors") in outcome.out
        assert load_model(output).pos_embed.shape[1] == 1 + side * side
        log = (output / "train.log").read_text()
        assert f"starting from student, teacher and heads of '{weights}" in log
        assert f"to {side} x {side}" in log
        weights = output


def test_finetune_a_file_without_heads_says_so(
    run, pretrained: Path, config_file: Path, tmp_path: Path
) -> None:
    file = pretrained / "exported" / "teacher.safetensors"
    output = tmp_path / "fine"
    command = ["finetune", file, "--config-file", config_file, "--output-dir", output]
    assert run(*command, "train.total_steps=1").code == 0
    assert "(heads at random)" in (output / "train.log").read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["absent"], "absent': no such file or folder"),
        (["run", "--img-size", "57"], "57 is not a multiple of the patch size 14"),
        (["run", "--img-size", "0"], "--img-size"),
        (["run", "dino.head_n_prototypes=128"], "head_n_prototypes is 128, the weights have 64"),
        (["run", "student.patch_size=7"], "student.patch_size is 7, the weights have 14"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    fails, pretrained: Path, config_file: Path, words: list[str], complaint: str
) -> None:
    weights = pretrained.with_name(words[0])
    output = pretrained.with_name("fine")
    command = ["finetune", weights, "--config-file", config_file, "--output-dir", output]
    assert complaint in fails(*command, *words[1:])


def test_a_run_is_not_fine_tuned_into_its_own_folder(
    fails, pretrained: Path, config_file: Path
) -> None:
    command = ["finetune", pretrained, "--config-file", config_file, "--output-dir", pretrained]
    assert "holds a run of another configuration" in fails(*command)
