"""`franca-fast plan`, and the page of the documentation that shows its output.

After a change of the verb or of what a step keeps: `python -m python_tests.cli.test_plan`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from franca_fast.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
# A command after a prompt, and what it prints, up to the end of the block.
BLOCK = re.compile(r"^\$ franca-fast (.*)\n((?:.*\n)*?)```$", re.MULTILINE)
SHOWN = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_page_shows_what_the_verb_prints(run, command: str, output: str) -> None:
    outcome = run(*command.split())
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == output


def test_the_page_has_the_plan_for_128_gpus() -> None:
    assert "plan vitg14_laion --gpus 128" in [command for command, _ in SHOWN]


def test_json_holds_the_plan_in_bytes(run, config_file: Path) -> None:
    outcome = run("plan", config_file, "--gpus", 16, "--json", "--shard-ranks", 4)
    plan = json.loads(outcome.out)
    assert plan["recipe"] == str(config_file)
    assert [layout["name"] for layout in plan["layouts"]] == ["replicated", "FSDP2", "HSDP 4"]
    count = sum(plan["parameters"].values())
    assert plan["layouts"][0]["memory"]["parameters"] == 4 * count
    assert plan["images"] == 64
    assert plan["activations"]["backbone"] > 0


def test_overrides_and_memory_change_the_table(run, config_file: Path) -> None:
    small, large = (
        run("plan", config_file, "--gpus", 1, "--gpu-memory", "0.001", override).out
        for override in ("train.batch_size_per_gpu=1", "train.batch_size_per_gpu=64")
    )
    assert "1 images a step on each of 1 GPUs" in small and "64 images a step" in large
    (row,) = (line for line in large.splitlines() if line.startswith("kept activations, stored s"))
    assert "*" in row
    assert "sent by" not in large
    assert "estimate of the time at 30% of 989 TFLOP/s" in large


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["vitb14_in22k", "--gpus", 1], "did you mean 'vitb14_in21k'"),
        (["demo"], "--gpus"),
        (["demo", "--gpus", 0], "--gpus"),
        (["demo", "--gpus", 8, "--shard-ranks", 3], "a divisor of 8"),
        (["demo", "--gpus", 8, "--mfu", "-1"], "--mfu"),
        (["demo", "--gpus", 8, "--tflops", "nan"], "--tflops"),
        (["demo", "--gpus", 8, "--precision", "fp8"], "--precision"),
        (["demo", "--gpus", 8, "student.arch=vit_bass"], "did you mean 'vit_base'"),
    ],
)
def test_wrong_input_is_one_line(fails, words: list[object], complaint: str) -> None:
    assert complaint in fails("plan", *words)


def write_page() -> None:
    """Replaces the outputs on the page by what the verb prints now."""

    def block(found: re.Match[str]) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert main(found[1].split()) == 0
        return f"$ franca-fast {found[1]}\n{output.getvalue()}```"

    PAGE.write_text(BLOCK.sub(block, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_page()
