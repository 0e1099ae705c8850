"""Defects that test_weight_norm.cpp has to notice."""

from __future__ import annotations

from mutations._shared import LOGITS, WARP, Mutation

KERNELS = "weight_norm.cu"

WEIGHT_NORM = [
    Mutation(WARP, "value += shuffle_xor(value, mask);", "value += shuffle_xor(value, mask / 2);"),
    Mutation(LOGITS, "matrix.data + n * matrix.row_bytes", "matrix.data"),
    Mutation(KERNELS, "fmaf(x, x, sums.square)", "x * x"),
    Mutation(KERNELS, "fmaf(x, to_float(w[c]), sums.product)", "x * to_float(w[c])"),
    Mutation(KERNELS, "warp_sum(sums.square)", "sums.square"),
    Mutation(KERNELS, "warp_sum(sums.product)", "sums.product"),
    Mutation(KERNELS, "sqrtf(sums_of_row(v, v, columns).square)", "1.0f"),
    Mutation(KERNELS, "matrices.g[k] / norm", "1.0f / norm"),
    Mutation(KERNELS, "k >= matrices.count", "false"),
    Mutation(KERNELS, "k >= matrices.count", "false", "prototype_gradients_kernel("),
    Mutation(KERNELS, "k >= matrices.count", "k + 1 >= matrices.count"),
    Mutation(KERNELS, "dscale != nullptr ? 1.0f : scale", "scale"),
    Mutation(KERNELS, "dscale != nullptr ? dscale[k] : sums.product", "sums.product"),
    Mutation(KERNELS, "-length * (scale / norm)", "-length * scale"),
    Mutation(KERNELS, "divide_up(prototypes.count, kWarps)", "prototypes.count / kWarps"),
    Mutation(KERNELS, "if (prototypes.count == 0) return;", ";"),
]
