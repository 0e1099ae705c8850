"""Peak memory of the clustering loss with stored and with streamed scores, each in its own process.

    python bench/streamed_memory.py [--rows 3072] [--prototypes 131072] [--dim 256]

Prints a table: seconds for Sinkhorn-Knopp, loss and gradients of one head, and the peak resident
memory beyond inputs and gradients. The two losses must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def measure(mode: str, rows: int, prototypes: int, dim: int) -> dict[str, float]:
    """Runs one mode in this process; memory figures are MiB."""
    import torch

    import franca_fast as ff

    def side(trained: bool) -> ff.ops.Scores:
        x = torch.randn(rows, dim).requires_grad_(trained)
        v = torch.nn.functional.normalize(torch.randn(prototypes, dim)).requires_grad_(trained)
        return ff.ops.Scores([x], [v], [torch.ones(prototypes).requires_grad_(trained)])

    torch.manual_seed(0)
    teacher, student = side(False), side(True)
    leaves = [tensor for part in student for tensor in part]
    for tensor in leaves:
        tensor.grad = torch.zeros_like(tensor)
    # A small run first, so that libraries have taken what they keep.
    small = [s._replace(values=[x[:16] for x in s.values]) for s in (teacher, student)]
    _loss(mode, *small).backward()
    for tensor in leaves:
        tensor.grad.zero_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    loss = _loss(mode, teacher, student)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Autograd makes the new gradients before it adds them to the old: those are gradients too.
    gradients = sum(t.numel() * 4 for t in leaves) / 2**20
    return {"loss": loss.item(), "seconds": seconds, "extra_mib": peak - before - gradients}


def _loss(mode: str, teacher, student):
    import franca_fast as ff

    if mode == "stored":
        teacher, student = (
            ff.ops.prototype_scores(s.values, s.prototypes, scales=s.scales)
            for s in (teacher, student)
        )
    return ff.ops.clustering_cross_entropy(student, ff.ops.sinkhorn_targets(teacher, 0.05)).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3072)
    parser.add_argument("--prototypes", type=int, default=131072)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--mode", choices=["stored", "streamed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = (args.rows, args.prototypes, args.dim)
    if args.mode:
        print(json.dumps(measure(args.mode, *sizes)))
        return
    print(f"{'mode':10}{'loss':>12}{'seconds':>10}{'extra MiB':>11}")
    for mode in ("stored", "streamed"):
        command = [sys.executable, *sys.argv, "--mode", mode]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(
            f"{mode:10}{result['loss']:12.5f}{result['seconds']:10.2f}{result['extra_mib']:11.0f}"
        )


if __name__ == "__main__":
    main()
