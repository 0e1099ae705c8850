"""Plan memory, communication and work of a step, for any recipe and number of GPUs.

Nothing is trained and no GPU is needed: parameters, gradients, moments and teacher are counted on
the networks themselves, and what a forward pass keeps is found by running its code on shapes alone.
For instance, ViT-g on 128 GPUs, and a recipe of your own with values changed:

  franca-fast plan vitg14_laion --gpus 128
  franca-fast plan vits14_1gpu --gpus 1 --gpu-memory 24 train.batch_size_per_gpu=64
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from franca_fast.cli.common import add_overrides, positive, positive_number, table

if TYPE_CHECKING:
    from franca_fast.planning.plan import Plan

GROUP = "train"
_GIB, _GB, _TERA = 2.0**30, 1e9, 1e12
_KEPT_ROWS = (
    ("activations, backbone", "backbone"),
    ("the same, checkpointed", "checkpointed"),
    ("activations, projections", "projections"),
    ("scores, stored", "stored_scores"),
    ("scores, streamed", "streamed_scores"),
)
_MEMORY_ROWS = {
    "parameters": "parameters, fp32",
    "gradients": "gradients, fp32",
    "moments": "AdamW's two moments, fp32",
    "teacher": "teacher, fp32",
    "images": "images of a batch, fp32",
    "16-bit weights": "weights in use",
}
_FLOP_ROWS = {
    "teacher": "teacher, forward",
    "student": "student, forward",
    "heads": "heads of both, forward",
    "backward": "backward",
    "scores": "scores, stored",
    "streamed_scores": "scores, streamed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a YAML configuration, or the name of a recipe"
    )
    parser.add_argument("--gpus", type=positive, required=True, metavar="N", help="number of GPUs")
    parser.add_argument(
        "--gpu-memory",
        type=positive_number,
        default=80.0,
        metavar="GIB",
        help="memory of each; what does not fit is marked (default: 80)",
    )
    parser.add_argument(
        "--shard-ranks",
        type=positive,
        metavar="N",
        help="GPUs that share one copy in the HSDP column, a divisor of --gpus (default: 8)",
    )
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp16", "fp32"),
        help="of the matrix products (default: that of the configuration, bf16 for auto)",
    )
    parser.add_argument(
        "--tflops",
        type=positive_number,
        default=989.0,
        metavar="T",
        help="peak of one GPU in 10^12 operations a second (default: 989, H100 in bf16)",
    )
    parser.add_argument(
        "--mfu",
        type=positive_number,
        default=0.3,
        metavar="SHARE",
        help="share of that peak which the estimate of the time assumes (default: 0.3)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, in bytes")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    from franca_fast.config.files import load_config
    from franca_fast.planning.plan import plan_training

    plan = plan_training(
        load_config(args.recipe, args.overrides),
        args.gpus,
        precision=args.precision,
        shard_ranks=args.shard_ranks,
    )
    if args.json:
        print(json.dumps({"recipe": args.recipe, **plan.to_dict()}, indent=2))
    else:
        print(f"{args.recipe}: " + "\n".join(_report(plan, args.gpu_memory, args.tflops, args.mfu)))
    return 0


def _report(plan: Plan, gpu_memory: float, tflops: float, mfu: float) -> Iterator[str]:
    parts = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in plan.parameters.items())
    yield (
        f"{plan.arch}, {plan.images // plan.gpus} images a step on each of {plan.gpus} GPUs, "
        f"{plan.images} in all, {plan.precision}"
    )
    yield f"parameters in millions: {sum(plan.parameters.values()) / 1e6:.1f} ({parts})"
    yield (
        f"{plan.prototypes} prototypes in a head, {plan.masked_patches} masked patches in a "
        "GPU's batch"
    )
    if plan.micro_batches > 1:
        yield f"{plan.micro_batches} micro-batches a step; work and time are those of all of them"
    if plan.gpus > 1:
        yield f"the configuration asks for: {plan.chosen} (train.parallel, train.shard_ranks)"
    names = [layout.name for layout in plan.layouts]
    yield ""
    yield table(["memory of one GPU, GiB", *names], list(_memory(plan)), numeric=len(names))
    yield ""
    header = [f"all at once, GiB (* above {gpu_memory:g})", *names]
    totals = {k: [la.totals[k] / _GIB for la in plan.layouts] for k in plan.layouts[0].totals}
    rows = [[k, *(f"{'*' * (t > gpu_memory)}{t:.2f}" for t in of)] for k, of in totals.items()]
    yield table(header, rows, numeric=len(names))
    if plan.gpus > 1:
        yield ""
        header = ["sent by one GPU in a step, GB", *names]
        yield table(header, list(_communication(plan)), numeric=len(names))
    yield ""
    work = {label: plan.micro_batches * plan.flops[part] for part, label in _FLOP_ROWS.items()}
    rows = [[label, f"{flops / _TERA:.2f}"] for label, flops in work.items()]
    yield table(["work of one GPU in a step", "TFLOP"], rows, numeric=1)
    yield ""
    yield from _time(plan, tflops, mfu)


def _memory(plan: Plan) -> Iterator[list[str]]:
    for kind, label in _MEMORY_ROWS.items():
        label += f", {plan.precision}" if kind == "16-bit weights" else ""
        yield [label, *(f"{layout.memory[kind] / _GIB:.2f}" for layout in plan.layouts)]
    for label, kind in _KEPT_ROWS:
        yield [label, *([f"{getattr(plan.activations, kind) / _GIB:.2f}"] * len(plan.layouts))]
    for mode in ("stored", "streamed"):
        values = (f"{layout.workspace[mode] / _GIB:.2f}" for layout in plan.layouts)
        yield [f"workspace, {mode} scores", *values]


def _communication(plan: Plan) -> Iterator[list[str]]:
    for kind in dict.fromkeys(kind for layout in plan.layouts for kind in layout.communication):
        values = (layout.communication.get(kind) for layout in plan.layouts)
        yield [kind, *("-" if value is None else f"{value / _GB:.3f}" for value in values)]
    yield ["together", *(f"{sum(la.communication.values()) / _GB:.3f}" for la in plan.layouts)]


def _time(plan: Plan, tflops: float, mfu: float) -> Iterator[str]:
    yield f"estimate of the time at {mfu:.0%} of {tflops:g} TFLOP/s, with the network for nothing:"
    for label, checkpointed, streamed in (
        ("kept activations, stored scores", False, False),
        ("checkpointed activations, streamed scores", True, True),
    ):
        work = plan.step_flops(checkpointed=checkpointed, streamed=streamed)
        seconds = work / (tflops * _TERA * mfu)
        yield f"  {label}: {seconds:.2f} s a step, {plan.images / seconds:.0f} images/s in all"
