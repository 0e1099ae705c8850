from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from franca_fast import cli
from franca_fast.cli import models
from franca_fast.cli.main import main, verbs


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["pretran"], "verb: unknown 'pretran' (did you mean 'pretrain'?"),
        (["embed", "m", "x", "--outpt", "y.npz"], "'--outpt' (did you mean '--output'?"),
        (["eval", "knn", "m", "--trian", "x"], "'--trian' (did you mean '--train'?"),
        (["pretrain", "--output_dir=x"], "'--output_dir' (did you mean '--output-dir'?"),
        (["embed", "m", "x"], "--output"),
        (["eval"], "PROTOCOL"),
        (["eval", "knm", "m"], "did you mean 'knn'"),
        (["pretrain", "surprise"], "surprise"),
        (["models", "surprise"], "unknown argument 'surprise'"),
        (["embed", "m", "x", "--output", "y.npz", "--batch-size", "0"], "--batch-size"),
        (["embed", "m", "x", "--output", "y.npz", "--img-size", "large"], "--img-size"),
    ],
)
def test_wrong_command_lines_are_one_line(fails, argv: list[str], complaint: str) -> None:
    assert complaint in fails(*argv)


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_help(run, verb: str) -> None:
    outcome = run(verb, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: franca-fast {verb}")


def test_a_verb_is_a_file_that_names_its_group(run, tmp_path: Path, monkeypatch) -> None:
    new = """'''Say hello.'''
GROUP = "data"
def add_arguments(parser): pass
def run(args): return print("hello") or 0
"""
    (tmp_path / "hello.py").write_text(new)
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    # Nothing of it stays behind, neither module nor attribute of the package.
    monkeypatch.setitem(sys.modules, "franca_fast.cli.hello", None)
    del sys.modules["franca_fast.cli.hello"]
    monkeypatch.setattr(cli, "hello", None, raising=False)
    found = [(file.GROUP, name) for name, file in verbs().items()]
    groups = ["train", "use", "data", "weights", "machine"]
    assert ("data", "hello") in found
    assert found == sorted(found, key=lambda verb: (groups.index(verb[0]), verb[1]))
    assert "Say hello." in run("--help").out
    assert run("hello").out == "hello\n"


def test_help_lists_the_verbs(run) -> None:
    assert "visualize" in run("--help").out
    assert run().code == 2


def test_version(run) -> None:
    import franca_fast

    assert run("--version").out.strip() == f"franca-fast {franca_fast.__version__}"


def raising(error: BaseException):
    def fail(args: object) -> int:
        raise error

    return fail


def test_interrupt_is_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "run", raising(KeyboardInterrupt()))
    outcome = run("models")
    assert (outcome.code, outcome.err) == (130, "franca-fast: interrupted\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "a.npz"), "No space left on device: a.npz"),
        (PermissionError(13, "Permission denied", "/root/x"), "Permission denied: /root/x"),
        (OSError("two\nlines"), "two lines"),
    ],
)
def test_trouble_with_files_is_one_line(fails, monkeypatch, error: OSError, line: str) -> None:
    monkeypatch.setattr(models, "run", raising(error))
    assert fails("models") == f"franca-fast: error: {line}\n"


@pytest.mark.parametrize("where", ["file", "loop"])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("embed absent absent --output", "out.npz"),
        ("eval knn absent --train absent --test absent --output", "knn.json"),
        ("visualize pca absent absent --output", "pictures"),
        ("export absent --format safetensors --output", "model.safetensors"),
        ("export absent --format huggingface --output", "model"),
        ("export absent --format onnx --output", "model.onnx"),
        ("export absent --format torch-export --output", "model.pt2"),
        ("export absent --format matrix --output", "matrix.safetensors"),
        ("convert absent", "model.pth"),
        ("convert absent", "model.safetensors"),
        ("rasa fit absent absent --output", "rasa.safetensors"),
        ("rasa apply absent --projector absent --output", "clean"),
        ("rasa report absent absent --projector absent --output", "report"),
        ("shards pack absent --output", "shards"),
        ("bench --json", "bench.json"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    fails, tmp_path: Path, monkeypatch, words: str, name: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    path = f"{where}/{name}"
    assert f"error: output: '{path}', " in fails(*words.split(), path)


def test_mistakes_in_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["models"])


def test_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "franca_fast", "models"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from franca_fast.cli.main import main; main(['embed', '--help']);"
        "sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
