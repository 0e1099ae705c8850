"""What a planted defect is, the files that several kernels share, and defects there."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One planted defect: `mutant` instead of the first `original` after `after`.

    An expression ends nowhere in particular; what ends with a semicolon is taken as a statement.
    """

    file: str
    original: str
    mutant: str
    after: str = ""


LOGITS = "logits.cuh"
LAUNCH = "primitives/launch.cuh"
PARAMETERS = "loss_parameters.cuh"
WARP = "primitives/warp.cuh"
MATRIX = "primitives/matrix.cuh"
MERGES = "merges.cu"
BARRIER = "block_barrier();"
WARP_BARRIER = "warp_barrier();"
CLUSTER_BARRIER = "cluster_barrier();"

OF_LOGITS = [
    Mutation(LOGITS, "n * matrix.row_bytes", "static_cast<int>(n * matrix.row_bytes)"),
    Mutation(WARP, "fmaxf(value, shuffle_xor(value, mask))", "fmaxf(value, shuffle_xor(value, 1))"),
    Mutation(WARP, "value += shuffle_xor(value, mask);", "value += shuffle_xor(value, mask / 2);"),
    Mutation(LOGITS, "vectors && left >= kPack<T>", "vectors", "uint4 load_pack"),
    Mutation(LOGITS, "i < left ? to_float(from[i]) : 0.0f", "to_float(from[i])"),
    Mutation(LOGITS, "total *= fast_exp(maximum - shift(new_maximum));", "total *= 1.0f;"),
    Mutation(LOGITS, "total *= exp_of<T>(largest - offset, scale);", "total *= 1.0f;"),
    Mutation(LOGITS, "i < count", "true", "largest = larger;"),
    Mutation(LOGITS, "(slice - heads.head[h].first_slice) * kSliceColumns", "0 * slice"),
    Mutation(LOGITS, "z[i] - offset", "z[i]", "largest = larger;"),
    Mutation(LOGITS, "fmaf(z, scale.high, potential) + offset", "fmaf(z, scale.high, potential)"),
]
