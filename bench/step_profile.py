"""Where the time of a step goes, by kinds of operators, from what torch.profiler counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# The first that fits. Names are those of torch.profiler, in lower case.
KINDS = {
    "attention": r"attention",
    "our operators": r"^franca_fast::",
    "optimizer": r"adamw|optimizer\.",
    "matrix products": r"^aten::(mm|addmm|bmm|baddbmm|addbmm|mv|addmv|dot|matmul|linear)$|mkldnn|"
    r"convolution|conv2d|onednn",
    "elementwise": r"^aten::(_foreach_)?(mul|add|sub|rsub|div|neg|pow|square|sqrt|rsqrt|exp|log|"
    r"abs|gelu|gelu_backward|silu|silu_backward|sigmoid|tanh|reciprocal|where|clamp\w*|lerp|"
    r"addcmul|addcdiv|bitwise_\w+|logical_\w+|eq|ne|lt|le|gt|ge|arange|random|bernoulli|uniform|"
    r"normal|masked_fill|maximum|minimum|threshold_backward|upsample\w*|sign|floor|ceil|"
    r"remainder|erf)_?$",
    "reductions and norms": r"norm|sum|mean|max|min|softmax|sort|topk|any|all$|var|isfinite|isnan|"
    r"cdist",
    "copies": r"copy|clone|^aten::(cat|_cat|stack|to|_to_copy|contiguous|fill_|zero_|zeros|ones|"
    r"full|_foreach_zero_|index\w*|_index_put_impl_|gather|scatter\w*|masked_select|nonzero|"
    r"repeat_interleave|\w+_backward|new_\w+|constant_pad_nd|embedding|roll|flip)$",
}
REST = "dispatch, Python and the rest"


def kind(name: str) -> str:
    """The kind of an operator by its name.

    >>> kind("aten::mm"), kind("aten::mul_"), kind("franca_fast::sinkhorn")
    ('matrix products', 'elementwise', 'our operators')
    """
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))
    return next(found, REST)


def by_kind(operators: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Milliseconds of each kind; the time of the step that no operator has is of the rest."""
    total = dict.fromkeys((*KINDS, REST), 0.0)
    for name, (milliseconds, _) in operators.items():
        if name:
            total[kind(name)] += milliseconds
    total[REST] += max(0.0, operators[""][0] - sum(total.values()))
    return total


def profile_tables(profiles: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A table of kinds and one of the slowest operators, for the versions side by side."""
    kinds = {name: by_kind(operators) for name, operators in profiles.items()}
    whole = {name: sum(parts.values()) for name, parts in kinds.items()}
    head = [f"{name} {unit}" for name in profiles for unit in ("ms", "%")]
    lines = ["| kind | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for row in (*KINDS, REST, "the step"):
        times = {n: kinds[n].get(row, whole[n]) for n in profiles}
        cells = [f"{times[n]:.1f} | {times[n] / whole[n]:.1%}" for n in profiles]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    for name, operators in profiles.items():
        lines += ["", f"Slowest operators, {name}:", "", "| operator | kind | calls | ms |"]
        lines.append("| --- | --- | ---: | ---: |")
        slowest = sorted((n for n in operators if n), key=lambda n: -operators[n][0])[:20]
        lines += [
            f"| {n} | {kind(n)} | {operators[n][1]} | {operators[n][0]:.1f} |" for n in slowest
        ]
    return "\n".join(lines)
