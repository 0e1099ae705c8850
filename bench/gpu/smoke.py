"""Part: every operator of a backend against float64, at an odd size and at that of the paper.

Each check also calls twice and compares the bits, and captures and replays a graph.
`--first-use` instead captures the very first call of every operator in a process: nothing may have
to be loaded or allowed beforehand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import franca_fast as ff
from bench.gpu import record
from bench.gpu.options import parse
from franca_fast.benchmarks.cases import STUDENT_TEMPERATURE as STUDENT
from franca_fast.benchmarks.cases import TEACHER_TEMPERATURE as TEACHER

BF16 = torch.bfloat16
Results = list[Tensor]
# What to compute, the same in float64, and how far they may differ, relative to their size.
Check = tuple[Callable[[], Results], Callable[[], Results], float]


def _logits(n_rows: int, widths: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(n_rows, k, dtype=BF16).mul_(0.3) for k in widths]


def _exact_potentials(z: Tensor, n_valid: int) -> tuple[Tensor, Tensor]:
    x = z[:n_valid].double() / TEACHER
    a = -torch.logsumexp(x, 0)
    for _ in range(2):
        b = -torch.logsumexp(x + a, 1)
        a = -torch.logsumexp(x + b[:, None], 0)
    b = torch.full((len(z),), -torch.inf, dtype=torch.float64)
    b[:n_valid] = -torch.logsumexp(x + a, 1)
    return a, b


def sinkhorn(n_rows: int, n_valid: int, widths: tuple[int, ...]) -> Check:
    """Potentials."""
    z = _logits(n_rows, widths)

    def call() -> Results:
        found = ff.ops.sinkhorn_potentials(z, TEACHER, n_valid=n_valid)
        return [*found.prototype, *found.row]

    def exact() -> Results:
        pairs = [_exact_potentials(head, n_valid) for head in z]
        return [a for a, _ in pairs] + [b for _, b in pairs]

    return call, exact, 2e-5


def assignments(n_rows: int, n_valid: int, widths: tuple[int, ...]) -> Check:
    """Written-out assignments."""
    z = _logits(n_rows, widths)

    def exact() -> Results:
        found = []
        for head in z:
            a, b = _exact_potentials(head, n_valid)
            found.append(torch.exp(head.double() / TEACHER + a + b[:, None]))
        return found

    return lambda: list(ff.ops.sinkhorn_knopp(z, TEACHER, n_valid=n_valid)), exact, 5e-5


def loss(n_rows: int, widths: tuple[int, ...]) -> Check:
    """Clustering cross-entropy, each student row meeting two teacher rows, and its gradient."""
    teacher, student = _logits(n_rows, widths), _logits(n_rows + 3, widths)
    rows = torch.randint(n_rows, (n_rows + 3, 2))
    with ff.use_backend("torch"):
        targets = ff.ops.sinkhorn_targets(teacher, TEACHER)

    def call() -> Results:
        leaves = [s.detach().requires_grad_() for s in student]
        value = ff.ops.clustering_cross_entropy(
            leaves, targets, teacher_rows=rows, student_temperature=STUDENT
        )
        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

    def exact() -> Results:
        values, gradients = [], []
        parts = zip(student, teacher, *targets.potentials, strict=True)
        for s, z, a, b in parts:
            assigned = torch.exp(z.double() / TEACHER + a + b[:, None])
            leaf = s.double().requires_grad_()
            log_softmax = torch.log_softmax(leaf / STUDENT, 1)
            value = -((assigned[rows[:, 0]] + assigned[rows[:, 1]]) * log_softmax).sum()
            value = value / len(s)
            gradients += torch.autograd.grad(value, leaf)
            values.append(value.detach())
        return [torch.stack(values), *gradients]

    return call, exact, 6e-3  # gradients are rounded to bfloat16


def _factors(n_rows: int, depth: int, widths: tuple[int, ...]) -> tuple[tuple[Tensor, ...], ...]:
    x = tuple(torch.randn(n_rows, depth).to(BF16) for _ in widths)
    v = tuple((torch.randn(k, depth) / depth**0.5).to(BF16) for k in widths)
    return x, v, tuple(torch.rand(k) for k in widths)


def _exact_scores(factors: tuple[tuple[Tensor, ...], ...]) -> list[Tensor]:
    triples = zip(*factors, strict=True)
    return [(x.double() @ v.double().t()) * scale.double() for x, v, scale in triples]


def scores(n_rows: int, depth: int, widths: tuple[int, ...]) -> Check:
    """Prototype scores."""
    x, v, scales = _factors(n_rows, depth, widths)
    call = lambda: list(ff.ops.prototype_scores(x, v, scales=scales))  # noqa: E731
    return call, lambda: _exact_scores((x, v, scales)), 6e-3


def streamed(n_rows: int, depth: int, widths: tuple[int, ...]) -> Check:
    """Potentials, loss and all gradients of scores that are never stored."""
    student, teacher = (_factors(n_rows, depth, widths) for _ in range(2))

    def call() -> Results:
        leaves = [[m.detach().requires_grad_() for m in part] for part in student]
        targets = ff.ops.sinkhorn_targets(ff.ops.Scores(*teacher), TEACHER)
        value = ff.ops.clustering_cross_entropy(
            ff.ops.Scores(*leaves), targets, student_temperature=STUDENT
        )
        gradients = torch.autograd.grad(value.sum(), [m for part in leaves for m in part])
        a, b = targets.potentials
        return [*a, *b, value.detach(), *gradients]

    def exact() -> Results:
        leaves = [[m.double().requires_grad_() for m in part] for part in student]
        own = [(x @ v.t()) * scale for x, v, scale in zip(*leaves, strict=True)]
        potentials, values = [], []
        for s, z in zip(own, _exact_scores(teacher), strict=True):
            a, b = _exact_potentials(z, len(z))
            potentials.append((a, b))
            assigned = torch.exp(z / TEACHER + a + b[:, None])
            values.append(-(assigned * torch.log_softmax(s / STUDENT, 1)).sum() / len(s))
        gradients = torch.autograd.grad(sum(values), [m for part in leaves for m in part])
        rows, columns = [b for _, b in potentials], [a for a, _ in potentials]
        return [*columns, *rows, torch.stack(values).detach(), *gradients]

    return call, exact, 2e-2


def attention(crops: tuple[tuple[int, int], ...], n_heads: int, head_dim: int) -> Check:
    """Packed attention and its gradient."""
    seqlens = [length for images, length in crops for _ in range(images)]
    qkv = torch.randn(sum(seqlens), 3, n_heads, head_dim).to(BF16)
    grad = torch.randn(sum(seqlens), n_heads, head_dim).to(BF16)

    def call() -> Results:
        leaf = qkv.detach().requires_grad_()
        out = ff.ops.varlen_attention_qkv(leaf, seqlens)
        return [out.detach(), *torch.autograd.grad(out, leaf, grad)]

    def exact() -> Results:
        leaf = qkv.double().requires_grad_()
        outputs = []
        for part in leaf.split([images * length for images, length in crops]):
            length = crops[len(outputs)][1]
            q, k, v = part.unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(q @ k.transpose(2, 3) * head_dim**-0.5, -1)
            outputs.append((weights @ v).transpose(1, 2).flatten(0, 1))
        out = torch.cat(outputs)
        return [out.detach(), *torch.autograd.grad(out, leaf, grad.double())]

    return call, exact, 1e-2


def checks(device: str) -> Iterator[tuple[str, Callable[[], Check]]]:
    """All checks by name; at the sizes of the paper only on a GPU."""
    odd, wide = (40, 8200, 130), (8192, 16384, 32768, 65536, 131072)
    yield "sinkhorn odd", lambda: sinkhorn(131, 130, odd)
    yield "sinkhorn few rows odd", lambda: sinkhorn(7, 5, (5, 37, 2060))
    yield "assignments odd", lambda: assignments(9, 7, (5, 2060))
    yield "loss odd", lambda: loss(131, odd)
    yield "scores odd", lambda: scores(70, 72, (130, 2060))
    yield "streamed odd", lambda: streamed(70, 72, (130, 2060))
    yield "attention odd", lambda: attention(((3, 17), (2, 65), (5, 1), (1, 300)), 3, 64)
    yield "attention odd 128", lambda: attention(((3, 17), (2, 145), (1, 300)), 2, 128)
    if device == "cuda":
        yield "sinkhorn N=64", lambda: sinkhorn(64, 64, wide)
        yield "sinkhorn N=1024", lambda: sinkhorn(1024, 1024, wide)
        yield "loss N=300", lambda: loss(300, wide)
        yield "scores N=1024", lambda: scores(1024, 256, wide)
        yield "streamed N=300", lambda: streamed(300, 256, (8192, 16384, 66))
        yield "attention crops", lambda: attention(((64, 257), (256, 50)), 16, 64)
        yield "attention long", lambda: attention(((4, 677), (2, 1370)), 16, 64)


def distance(found: Results, exact: Results) -> float:
    """The largest distance of a tensor to its reference, relative to the reference's size."""
    largest = 0.0
    for value, reference in zip(found, exact, strict=True):
        finite = reference.isfinite()
        if not torch.equal(value.isfinite(), finite):
            return float("inf")
        difference = (value.double() - reference)[finite].norm()
        largest = max(largest, float(difference / reference[finite].norm().clamp_min(1e-30)))
    return largest


def captured(call: Callable[[], Results]) -> Results:
    """The results of a graph of the call, replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    graph.replay()
    torch.cuda.synchronize()
    return results


def run(name: str, make: Callable[[], Check], device: str) -> bool:
    """One check; adds its row."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"check": name}
    try:
        call, exact, tolerance = make()
        found, again = call(), call()
        row |= {"error": distance(found, exact()), "allowed": tolerance}
        row["same_bits"] = all(map(torch.equal, found, again))
        if device == "cuda":
            row["graph_same_bits"] = all(map(torch.equal, found, captured(call)))
        row["passed"] = (
            row["error"] <= tolerance and row["same_bits"] and row.get("graph_same_bits", True)
        )
    except Exception as error:
        row |= {"passed": False, "raised": f"{type(error).__name__}: {error}"[:2000]}
    record.add(**row)
    return bool(row["passed"])


def first_use(name: str, make: Callable[[], Check], device: str) -> bool:
    """The first call of an operator in this process, in a graph; adds its row."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"check": f"first use in a graph: {name}"}
    try:
        call, exact, tolerance = make()
        # PyTorch's own rule for graphs: cuBLAS must have been used before.
        for dtype in (BF16, torch.float32):
            torch.ones(16, 16, dtype=dtype) @ torch.ones(16, 16, dtype=dtype)
        found = captured(call) if device == "cuda" else call()
        row |= {"error": distance(found, exact()), "allowed": tolerance}
        row["passed"] = row["error"] <= tolerance
    except Exception as error:
        row |= {"passed": False, "raised": f"{type(error).__name__}: {error}"[:2000]}
    record.add(**row)
    return bool(row["passed"])


def row_sharing() -> dict[str, Any]:
    """How the rows of the paper's heads are spread over this card."""
    from franca_fast import _C
    from franca_fast.backends._core import pack_heads

    z = [torch.empty(3072, k, dtype=BF16) for k in (8192, 16384, 32768, 65536, 131072)]
    heads = pack_heads(z, "logits", z[0].device)
    return dict(_C.cuda.row_sharing(heads.numbers, heads.n_rows, heads.dtype, 3072))


def main() -> int:
    """Returns 0 when all checks passed."""
    options = parse(
        __doc__,
        backend={"default": "cuda"},
        first_use={"action": "store_true"},
        check={"default": "", "help": "this one alone"},
    )
    if options.device == "cpu":
        options.backend = "torch"  # a dry run, of the checks
    with torch.device(options.device), ff.use_backend(options.backend):
        passed = run_all(options)
        if options.backend == "cuda" and not (options.check or options.first_use):
            record.add(fact="rows over clusters, N=3072", value=str(row_sharing()))
    return 0 if passed else 1


def run_all(options: Any) -> bool:
    """Runs the checks that are asked for; returns whether all passed."""
    known, passed = dict(checks(options.device)), True
    names = [name for name in known if " odd" in name or not options.first_use]
    check = first_use if options.first_use else run
    for name in [options.check] if options.check else names:
        if check(name, known[name], options.device):
            continue
        passed = False
        # A failed capture, like an illegal address, spoils the process.
        on_gpu = options.device == "cuda" and not options.check
        if on_gpu and (options.first_use or _spoiled()):
            _each_alone(names[names.index(name) + 1 :], options)
            break
    return passed


def _spoiled() -> bool:
    """Whether the device is of no more use to this process."""
    try:
        torch.randn(1).item()
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _each_alone(names: list[str], options: Any) -> None:
    """Each check in a process of its own."""
    command = [sys.executable, "-m", "bench.gpu.smoke", "--device", options.device]
    command += ["--backend", options.backend, *(["--first-use"] if options.first_use else [])]
    for name in names:
        subprocess.run([*command, "--check", name], env=os.environ, check=False)


if __name__ == "__main__":
    sys.exit(main())
