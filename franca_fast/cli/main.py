"""The `franca-fast` command: finds the verb, runs it, and turns errors into one line."""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from franca_fast import cli
from franca_fast.cli.common import Parser
from franca_fast.cores import share_cores
from franca_fast.errors import FrancaError, InputError, did_you_mean, error_line
from franca_fast.spelling import ERRORS

PROGRAM = "franca-fast"
_GROUPS = ("train", "use", "data", "weights", "machine")  # the order of the verbs in the help
_WRONG, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def entry() -> int:
    """Runs the command of this process; one of several ranks then leaves at once.

    A rank does not take the interpreter apart: a thread of the process group that asked for it
    meanwhile would abort the process, and torchrun would take a finished run for a failed one.
    """
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after the program's name; None takes them from the process.

    Returns:
        the exit code: 0, or 2 for anything a user can mend (one line on stderr says what), 130
        when interrupted, 141 when the reader of the output went away. Mistakes in the program
        itself are not caught.

    Example:
        >>> main(["models", "--nonsense"])
        2
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be no text of its encoding
            stream.reconfigure(errors=ERRORS)
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except FrancaError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        return _complain(error_line(error))


def verbs() -> dict[str, ModuleType]:
    """The verbs: every file beside this one that names its `GROUP`, by group and name.

    The first line of a verb's docstring is its summary; `add_arguments(parser)` adds its options
    and `run(args)` runs it. All are imported, so heavy packages are imported in `run` alone.
    """
    names = [module.name for module in pkgutil.iter_modules(cli.__path__)]
    files = {name: importlib.import_module(f"{cli.__name__}.{name}") for name in names}
    found = {name: file for name, file in files.items() if hasattr(file, "GROUP")}
    return dict(sorted(found.items(), key=lambda verb: (_GROUPS.index(verb[1].GROUP), verb[0])))


def build_parser() -> Parser:
    """The parser of the whole command line."""
    from franca_fast import __version__

    parser = Parser(
        prog=PROGRAM,
        description="Train Franca vision models and use them. Start with: franca-fast demo",
        epilog=f"Help on a verb: {PROGRAM} VERB --help",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in verbs().items():
        summary = (module.__doc__ or "").splitlines()[0]
        verb = choices.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def _run(argv: list[str]) -> int:
    parser = build_parser()
    if not argv:
        parser.print_help()
        return _WRONG
    if not argv[0].startswith("-"):
        _verb_parser(parser, argv[0]).refuse_unknown(argv[1:])
    try:
        args, rest = parser.parse_known_args(argv)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    # argparse takes positional words in one place only; overrides may stand anywhere.
    if hasattr(args, "overrides"):
        args.overrides += [word for word in rest if "=" in word and not word.startswith("-")]
        rest = [word for word in rest if word not in args.overrides]
    if rest:
        args.parser.error(f"unknown argument '{rest[0]}'")
    with share_cores():
        return args.run(args)


def _verb_parser(parser: Parser, verb: str) -> Parser:
    choices = next(a.choices for a in parser._actions if isinstance(a.choices, dict))
    if verb not in choices:
        known = ", ".join(choices)
        raise InputError(f"verb: unknown '{verb}'{did_you_mean(verb, choices)}; accepted: {known}")
    return choices[verb]


def _complain(message: str) -> int:
    print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
    return _WRONG
