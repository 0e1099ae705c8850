"""What several verbs share: models of a run, recipes are listed, warnings wait for the end."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from franca_fast.cli.common import (
    Parser,
    add_decoding_arguments,
    decoding_options,
    warnings_at_the_end,
)
from franca_fast.config import Config, list_recipes, load_config
from franca_fast.errors import InputError
from franca_fast.evaluation import Embeddings
from franca_fast.rasa import PositionProjector
from python_tests.hub.run_files import network_of, write_run


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_the_recipes_are_listed(run, verb: str) -> None:
    outcome = run(verb, "--list-recipes")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == list_recipes()


def test_warnings_wait_for_the_end_and_many_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_at_the_end():
        for i in range(12):
            logging.getLogger("franca_fast.data").warning("file %d", i)
        assert "warning: file" not in capsys.readouterr().err
    shown = capsys.readouterr().err.splitlines()
    assert [line for line in shown if line.startswith("warning: ")] == [
        *(f"warning: file {i}" for i in range(10)),
        "warning: 2 more like these",
    ]


def test_after_an_error_warnings_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError), warnings_at_the_end():
        logging.getLogger("franca_fast.data").warning("file")
        raise InputError("path: 'x'; accepted: a file")
    assert "warning: file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--levels", "minmax"], {"levels": "minmax"}),
        (["--levels", "-1024:3071"], {"levels": "-1024:3071"}),
        (["--levels=-.5:9", "--max-image-pixels", "9"], {"levels": "-.5:9", "max_image_pixels": 9}),
    ],
)
def test_options_of_decoding_are_those_that_were_given(words: list[str], options: dict) -> None:
    parser = Parser()
    add_decoding_arguments(parser)
    assert decoding_options(parser.parse_args(words)) == options


@pytest.mark.parametrize("words", [["--levels", "9:-9"], ["--max-image-pixels", "0"]])
def test_bad_options_of_decoding_are_refused(words: list[str]) -> None:
    parser = Parser()
    add_decoding_arguments(parser)
    with pytest.raises(InputError, match="; accepted: "):
        decoding_options(parser.parse_args(words))


@pytest.fixture
def killed(config_file: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 2 and 4 and no exported model."""
    config = load_config(config_file)
    return write_run(tmp_path / "run", network_of(config), config, 2, 4)


VERBS = {
    "embed": ["embed", "MODEL", "IMAGES", "--output", "OUT.npz"],
    "eval": ["eval", "knn", "MODEL", "--train", "IMAGES", "--test", "IMAGES", "--k", 1],
    "visualize": ["visualize", "pca", "MODEL", "IMAGES", "--output", "OUT"],
    "export": ["export", "MODEL", "--format", "safetensors", "--output", "OUT.safetensors"],
    "convert": ["convert", "MODEL", "OUT.pth"],
    "rasa": ["rasa", "apply", "MODEL", "--projector", "PROJECTOR", "--output", "OUT"],
}


@pytest.mark.parametrize("command", VERBS.values(), ids=VERBS.keys())
def test_every_verb_takes_a_checkpoint_and_says_that_a_run_has_no_export(
    run, killed: Path, image_folder: Path, tmp_path: Path, command: list[object]
) -> None:
    projector = tmp_path / "projector.safetensors"
    PositionProjector(torch.randn(2, 2, 32)).save(projector)

    def words(model: Path, output: str) -> list[object]:
        names = {"MODEL": model, "IMAGES": image_folder, "PROJECTOR": projector}
        return [
            names.get(word, str(word).replace("OUT", str(tmp_path / output))) for word in command
        ]

    outcome = run(*words(killed, "a"))
    assert outcome.code == 2
    assert "a run at step 4 of 4, without an exported model yet; resume it" in outcome.err
    assert "use --checkpoint newest or one of 2, 4" in outcome.err
    assert run(*words(killed / "checkpoints" / "2", "b")).code == 0
    choice = ("--checkpoint", "newest", "--network", "student")
    assert run(*words(killed, "c"), *choice).code == 0


@pytest.fixture
def dinov3(tmp_path: Path) -> Path:
    """A folder of DINOv3 as transformers writes it."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.DINOv3ViTConfig(
        **sizes, intermediate_size=48, image_size=28, patch_size=7
    )
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path / "dinov3")
    return tmp_path / "dinov3"


def test_verbs_that_only_look_at_tokens_take_encoders_of_other_libraries(
    run, fails, dinov3: Path, image_folder: Path, tmp_path: Path
) -> None:
    source, quick = "FashionMNIST:split=TEST", ("--readout", "covariance", "--num-workers", "0")
    projector = tmp_path / "rasa.safetensors"
    assert run("rasa", "fit", dinov3, source, "--output", projector, *quick).code == 0
    report = ("rasa", "report", dinov3, source, "--projector", projector, "--num-workers", "0")
    assert run(*report, "--output", tmp_path / "report").code == 0
    picture = ("visualize", "pca", dinov3, image_folder, "--output", tmp_path / "pca")
    assert run(*picture).code == 0
    features = {}
    for name, more in (("raw", ()), ("clean", ("--rasa", projector))):
        command = ("embed", dinov3, image_folder, "--pooling", "patch_mean", "--precision", "fp32")
        assert run(*command, *more, "--output", tmp_path / f"{name}.npz").code == 0
        features[name] = Embeddings.load(tmp_path / f"{name}.npz").features
    expected = PositionProjector.from_files(projector).apply(features["raw"])
    torch.testing.assert_close(features["clean"], expected, rtol=0, atol=1e-5)
    for verb in ("export", "convert", "rasa"):
        names = {"MODEL": dinov3, "PROJECTOR": projector}
        words = [names.get(w, str(w).replace("OUT", str(tmp_path / "out"))) for w in VERBS[verb]]
        assert "are for embed, eval, visualize, rasa fit and rasa report" in fails(*words)


def test_checkpoint_options_that_do_not_fit(fails, killed: Path, tmp_path: Path) -> None:
    command = ["export", killed, "--format", "safetensors", "--output", tmp_path / "a.safetensors"]
    assert "accepted: newest or 2, 4" in fails(*command, "--checkpoint", "3")
    assert "accepted: newest or 2, 4" in fails(*command, "--checkpoint", "last")
    assert "with a checkpoint of a run" in fails(*command, "--network", "student")
    assert "choose from" in fails(*command, "--network", "pupil")


def test_a_finetuning_starts_from_a_killed_run_and_says_when_it_cannot(
    run, fails, killed: Path, config_file: Path, tmp_path: Path
) -> None:
    options = ("--config-file", config_file, "--output-dir", tmp_path / "fine")
    shutil.copytree(killed, tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "checkpoints")
    (tmp_path / "early" / "checkpoints").mkdir()
    (tmp_path / "early" / "metrics.jsonl").write_text('{"step": 3}\n')
    message = fails("finetune", tmp_path / "early", *options)
    assert "a run at step 3 of 4, without a checkpoint or an exported model yet" in message
    assert run("finetune", killed, *options, "train.total_steps=1").code == 0


@pytest.mark.parametrize("text", ["{00..09}.tar", "*.tar", "x: y", "x #1", "0123", "", "a b=c"])
@pytest.mark.parametrize("verb", ["pretrain", "plan"])
def test_text_reaches_the_configuration_as_it_is(
    run, config_file: Path, verb: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(config: Config) -> None:
        raise InputError(f"{config.train.dataset_path!r} {config.train.seed}")

    monkeypatch.setattr("franca_fast.config.files.check_config", stop)
    words = ("--config-file", config_file) if verb == "pretrain" else (config_file, "--gpus", 1)
    outcome = run(verb, *words, f"train.dataset_path={text}", "train.seed=0x10")
    assert outcome.err == f"franca-fast: error: {text!r} 16\n"
