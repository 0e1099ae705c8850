"""What several verbs share: the parser, model arguments, tables."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from franca_fast.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import torch

    from franca_fast.evaluation.foreign_encoders import ForeignEncoder
    from franca_fast.models import ProjectedEncoder, VisionTransformer


_WARNINGS_SHOWN = 10


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other error."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        # "-1024:3071" is a value, as negative numbers are.
        self._negative_number_matcher = re.compile(r"-\.?\d")
        self.set_defaults(parser=self)  # of a command, the innermost

    def error(self, message: str) -> NoReturn:
        """Raises the complaint as an error of the user's instead of printing the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Complains about an option that this verb lacks, and names the nearest one.

        argparse itself would complain about a missing option before one that is misspelt.
        """
        known = set(self._option_strings())
        for word in words:
            option = word.split("=", 1)[0]
            if option.startswith("--") and option not in known:
                self.error(f"unknown option '{option}'{did_you_mean(option, known)}")

    def _option_strings(self) -> Iterator[str]:
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action.choices, dict):  # the kinds of a verb, such as `eval knn`
                for kind in action.choices.values():
                    yield from kind._option_strings()


def add_weights_arguments(parser: argparse.ArgumentParser, *, rasa: bool = True) -> None:
    """Adds MODEL, --weights and, unless told otherwise, --rasa."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run directory or one of its checkpoints/<step>, a .safetensors or .pth file, or a "
        "name (see franca-fast models); embed, eval, visualize, rasa fit and rasa report also take "
        "timm:NAME and Hugging Face folders of DINOv3 and others",
    )
    parser.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="when MODEL is a name: a file, the name of released weights, or 'random' for an "
        "untrained network",
    )
    add_checkpoint_arguments(parser)
    if rasa:
        parser.add_argument(
            "--rasa",
            metavar="FILE",
            help="remove positions from patch tokens: a file of `rasa fit`, or a released one",
        )


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint and --network, which choose a model of a run."""
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        metavar="STEP",
        help="of a run directory: the checkpoint of this step, or 'newest', in place of what the "
        "run exported",
    )
    parser.add_argument(
        "--network",
        default="teacher",
        choices=("teacher", "student"),
        help="of a checkpoint (default: teacher, which is what a run exports)",
    )


def _checkpoint(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def add_model_arguments(parser: argparse.ArgumentParser, *, rasa: bool = True) -> None:
    """Adds what `add_weights_arguments` does, --img-size and --device."""
    add_weights_arguments(parser, rasa=rasa)
    parser.add_argument(
        "--img-size",
        type=int,
        metavar="PIXELS",
        help="side of the images, a multiple of the patch (default: the model's own)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:<index> (default: auto, a GPU where there is one)",
    )


def load_model(args: argparse.Namespace) -> VisionTransformer:
    """Loads the network of this package that `add_model_arguments` describes, on its device."""
    from franca_fast.hub import load_model

    device = _device(args)
    return load_model(**_loaded(args)).to(device)


def load_encoder(args: argparse.Namespace) -> VisionTransformer | ForeignEncoder | ProjectedEncoder:
    """Loads the encoder, of any kind, that `add_model_arguments` describes, on its device."""
    from franca_fast.evaluation.encoders import load_encoder

    device = _device(args)
    return load_encoder(**_loaded(args)).to(device)


def _device(args: argparse.Namespace) -> torch.device:
    from franca_fast.training.precision import choose_device

    try:
        return choose_device(args.device)
    except InputError as error:  # which names the key of the configuration
        raise InputError(str(error).replace("train.device", "--device")) from error


def _loaded(args: argparse.Namespace) -> dict[str, Any]:
    """What `load_model` and `load_encoder` take, of what `add_model_arguments` describes."""
    return {
        "name_or_path": args.model,
        "weights": args.weights,
        "img_size": args.img_size,
        # Verbs that work on projectors themselves load the bare backbone.
        "rasa": getattr(args, "rasa", None),
        "checkpoint": args.checkpoint,
        "network": args.network,
    }


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --config-file, --output-dir, --no-resume and overrides of the configuration."""
    add_config_arguments(parser)
    parser.add_argument(
        "--output-dir", metavar="DIR", help="the run directory (default: train.output_dir)"
    )
    parser.add_argument(
        "--no-resume",
        action="store_true",
        help="start from the beginning; a run that is there is moved aside, not deleted",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --config-file, --list-recipes and overrides of the configuration."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="a YAML configuration, or the name of a recipe of this package (default: DINOv2's)",
    )
    parser.add_argument(
        "--list-recipes",
        action=_ListRecipes,
        help="print the names of the recipes with their first line of explanation, and exit",
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds values of the configuration, which may stand anywhere on the line."""
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", default=[], help="values of the configuration"
    )


def add_source_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the images that a verb reads."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="+",
        help="image files, a folder (its sub-folders are classes), shards (.tar; patterns allowed)",
    )


class _ListRecipes(argparse.Action):
    """Prints the recipes; works without the arguments that are otherwise required."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> NoReturn:
        from franca_fast.config.files import list_recipes, recipe_summary

        print(table(["recipe", "what it is"], [[n, recipe_summary(n)] for n in list_recipes()]))
        parser.exit()


def is_first_process() -> bool:
    """Whether this process speaks for a run: the only one, or rank 0 of those of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --batch-size and --num-workers."""
    parser.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="images at once (default: 64)"
    )
    parser.add_argument(
        "--num-workers",
        type=not_negative,
        default=2,
        metavar="N",
        help="threads that prepare images (default: 2)",
    )


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --precision."""
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bf16", "fp32"),
        help="what the network computes in: auto (default) is bf16 where the machine multiplies "
        "matrices faster in it, and fp32 elsewhere; results are float32 in any case",
    )


def add_decoding_arguments(parser: argparse.ArgumentParser, most: str = "64000000") -> None:
    """Adds --max-image-pixels and --levels; `most` is what it says of the default."""
    parser.add_argument(
        "--max-image-pixels",
        type=positive,
        metavar="N",
        help=f"skip larger images without decoding them (default: {most})",
    )
    parser.add_argument(
        "--levels",
        metavar="LEVELS",
        help="how levels of more than 8 bits become 0 to 255: full (default) maps the range of "
        "the type, minmax that of each image, LOW:HIGH what lies between two numbers",
    )


def decoding_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_decoding_arguments` was given, as keywords.

    Raises:
        InputError: levels that do not exist.
    """
    from franca_fast.data.pixels.levels import level_range

    if args.levels is not None:
        level_range(args.levels)
    given = {"max_image_pixels": args.max_image_pixels, "levels": args.levels}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def warnings_at_the_end() -> Iterator[None]:
    """Holds the package's warnings back, such as those on files that were skipped.

    They are shown on stderr when the block has ended well; when it fails, its error is all that is
    to be said.
    """
    held = _Holder()
    package = logging.getLogger("franca_fast")
    package.addHandler(held)
    try:
        yield
    finally:
        package.removeHandler(held)
    for message in held.messages[:_WARNINGS_SHOWN]:
        print(f"warning: {message}", file=sys.stderr)
    if len(held.messages) > _WARNINGS_SHOWN:
        print(f"warning: {len(held.messages) - _WARNINGS_SHOWN} more like these", file=sys.stderr)


class _Holder(logging.Handler):
    """Keeps messages in memory."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")


def positive(text: str) -> int:
    """Type of an option that is a positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; accepted: 1 or more")
    return value


def not_negative(text: str) -> int:
    """Type of an option that is a whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value}; accepted: 0 or more")
    return value


def positive_number(text: str) -> float:
    """Type of an option that is a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; accepted: a finite number above 0")
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[object]], numeric: int = 0) -> str:
    """Aligned plain text; the last `numeric` columns are aligned to the right.

    Example:
        >>> print(table(["name", "k"], [["a", 10], ["bc", 9]], numeric=1))
        name   k
        a     10
        bc     9
    """
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first_numeric = len(header) - numeric
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i >= first_numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
