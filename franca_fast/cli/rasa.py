"""Remove absolute positions from patch tokens: find them, apply the projector, measure.

For instance:

  franca-fast rasa fit franca_demo photos/ --output rasa.safetensors
  franca-fast rasa report franca_demo other_photos/ --projector rasa.safetensors --output report
  franca-fast rasa apply franca_demo --projector rasa.safetensors --output clean_model
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from franca_fast.cli.common import (
    Parser,
    add_decoding_arguments,
    add_model_arguments,
    add_overwrite_argument,
    add_source_argument,
    load_encoder,
    load_model,
    positive,
    table,
    warnings_at_the_end,
)

if TYPE_CHECKING:
    from franca_fast.rasa import FitSettings, PositionReport

GROUP = "use"
_WEIGHTS = "backbone.safetensors"  # what `apply` writes, and the JSON beside it
_REPORT, _PICTURE = "report.json", "positions.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)
    _add_fit(kinds)
    _add_apply(kinds)
    _add_report(kinds)


def run(args: argparse.Namespace) -> int:
    return {"fit": _fit, "apply": _apply, "report": _report}[args.kind](args)


def _add_fit(kinds: argparse._SubParsersAction[Parser]) -> None:
    fit = kinds.add_parser(
        "fit",
        help="find the directions of position in a model's patch tokens",
        description="Fits a read-out of rows and columns and removes what it reads, again and "
        "again. About 10,000 images are plenty. An interrupted fit continues when the same "
        "command is given again.",
    )
    add_model_arguments(fit, rasa=False)
    _add_images(fit)
    fit.add_argument(
        "--output", required=True, metavar="FILE", help=".safetensors, or .pth as released"
    )
    fit.add_argument("--iterations", type=positive, metavar="N", help="at most (default: 8)")
    fit.add_argument(
        "--readout",
        help="sigmoid (default, the paper's), linear, or covariance (one iteration is enough)",
    )
    fit.add_argument(
        "--epochs", type=positive, metavar="N", help="per iteration (default: 5, or 410 steps)"
    )
    fit.add_argument("--batch-size", type=positive, metavar="N", help="images a step (128)")
    fit.add_argument(
        "--compatible",
        action="store_true",
        help="remove one pair of directions after the other, as the released code",
    )
    add_overwrite_argument(fit)


def _add_apply(kinds: argparse._SubParsersAction[Parser]) -> None:
    apply = kinds.add_parser(
        "apply",
        help="write a model whose patch tokens have no positions",
        description="Writes the backbone and the projector together into a folder, which every "
        "verb and load_model take. (The other verbs' --rasa applies a projector without writing.)",
    )
    add_model_arguments(apply, rasa=False)
    _add_projector(apply)
    apply.add_argument("--output", required=True, metavar="DIR", help="folder for the model")
    add_overwrite_argument(apply)


def _add_report(kinds: argparse._SubParsersAction[Parser]) -> None:
    report = kinds.add_parser(
        "report",
        help="measure what probes know of positions before and after",
        description="Fits new probes on half of the images and measures them on the other half. "
        "Writes report.json and a picture of what is read, positions.png.",
    )
    add_model_arguments(report, rasa=False)
    _add_images(report)
    _add_projector(report)
    report.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    add_overwrite_argument(report)


def _add_images(parser: argparse.ArgumentParser) -> None:
    add_source_argument(parser)
    parser.add_argument(
        "--crops",
        help="random (default): crops, mirrored and turned, so that what photographs show where "
        "plays no part; or center",
    )
    parser.add_argument("--seed", type=int, help="of crops and order (default: 0)")
    parser.add_argument(
        "--cache-gb",
        type=float,
        metavar="GB",
        help="memory for patch tokens; computed again in every pass if they need more (4)",
    )
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="threads that prepare images (2)"
    )
    add_decoding_arguments(parser)


def _add_projector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--projector", required=True, metavar="FILE", help="of `rasa fit`, or a released one"
    )
    parser.add_argument(
        "--compatible",
        action="store_true",
        default=None,
        help="remove one pair of directions after the other, as the released code",
    )


def _settings(args: argparse.Namespace) -> FitSettings:
    from dataclasses import fields

    from franca_fast.rasa import FitSettings

    names = {field.name for field in fields(FitSettings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return FitSettings(**{name: value for name, value in given.items() if value is not None})


def _fit(args: argparse.Namespace) -> int:
    from franca_fast.hub.projector_files import check_projector_output
    from franca_fast.rasa import fit

    check_projector_output(args.output, overwrite=args.overwrite)
    settings = _settings(args)
    with warnings_at_the_end():
        projector = fit(
            load_encoder(args),
            args.source,
            settings,
            output=args.output,
            overwrite=args.overwrite,
            progress=True,
        )
    history = projector.facts["iterations"]
    rows = [
        (i + 1, f"{line['error']:.4f}", f"{line['explained']:.1%}")
        for i, line in enumerate(history)
    ]
    print(f"Error of the read-outs; chance is {projector.facts['chance']:.4f}")
    print(table(("iteration", "error", "of the position read"), rows, numeric=3))
    print(f"{args.output}: {projector.rank} of {projector.width} directions are removed")
    if len(history) == settings.iterations and history[-1]["explained"] > settings.stop_below:
        print("Position may be left: see rasa report; more --iterations or --readout covariance")
    return 0


def _apply(args: argparse.Namespace) -> int:
    from franca_fast.files import check_folder
    from franca_fast.hub.export import check_export, export_safetensors
    from franca_fast.rasa import PositionProjector

    check_folder(args.output, overwrite=args.overwrite)
    weights = os.path.join(args.output, _WEIGHTS)
    check_export(weights, "safetensors", overwrite=args.overwrite)
    projector = PositionProjector.from_files(args.projector, compatible=args.compatible)
    clean = projector.attach(load_model(args))
    file = export_safetensors(clean, weights, overwrite=args.overwrite)
    print(f"{file}: {projector.rank} directions of {projector.width} removed from patch tokens")
    return 0


def _report(args: argparse.Namespace) -> int:
    from franca_fast.evaluation.pictures import NO_PICTURES, can_draw
    from franca_fast.files import check_folder, save_or_keep, write_json
    from franca_fast.rasa import PositionProjector, position_report

    written = [_REPORT, _PICTURE] if can_draw() else [_REPORT]
    check_folder(args.output, overwrite=args.overwrite, files=written)
    settings = _settings(args)
    projector = PositionProjector.from_files(args.projector, compatible=args.compatible)
    with warnings_at_the_end():
        report = position_report(load_encoder(args), args.source, projector, settings)
    print(_summary(report))
    if _PICTURE not in written:
        print(f"warning: {NO_PICTURES}", file=sys.stderr)

    def write(folder: Path) -> None:
        write_json(folder / _REPORT, report.as_dict())
        if _PICTURE in written:
            report.save_picture(folder / _PICTURE)

    save_or_keep(args.output, write)
    print(f"\n{Path(args.output)}: {', '.join(written)}")
    return 0


def _summary(report: PositionReport) -> str:
    rows = [
        (
            step.iterations,
            step.directions,
            f"{step.ridge_mse:.4f}",
            f"{step.ridge_r2:.3f}",
            "" if step.trained_r2 is None else f"{step.trained_r2:.3f}",
            f"{step.energy_removed:.1%}",
        )
        for step in report.steps
    ]
    header = ("iterations", "directions", "error", "R2", "R2 trained", "energy removed")
    return (
        f"Error of new probes on {report.held_out_images} held-out images (fitted on "
        f"{report.probe_images}); chance is {report.chance:.4f}\n{table(header, rows, numeric=6)}"
    )
