"""Defects that test_adamw.cpp has to notice."""

from __future__ import annotations

from mutations._shared import Mutation

KERNELS = "adamw_kernels.cuh"
UPDATE = "adamw_update.cu"

ADAMW = [
    Mutation(KERNELS, "!*in.finite", "false", "adamw_factors_kernel("),
    Mutation(KERNELS, "!*in.finite", "false", "adamw_kernel("),
    Mutation(KERNELS, "i >= rates.n_tensors", "i >= kTensorsPerLaunch"),
    Mutation(KERNELS, "*tensor.step + 1.0f", "*tensor.step"),
    Mutation(KERNELS, "*tensor.step = step;", ";"),
    Mutation(KERNELS, "in.clip_factors[tensor.module]", "in.clip_factors[0]"),
    Mutation(KERNELS, "in.clip_factors != nullptr", "true"),
    Mutation(KERNELS, "rates.first + i", "i"),
    Mutation(KERNELS, "streams.first + i", "i"),
    Mutation(KERNELS, "gradient * f.clip", "gradient"),
    Mutation(KERNELS, "p * f.taken_student", "p"),
    Mutation(KERNELS, "all % kPackBytes == 0", "true"),
    Mutation(KERNELS, "vectors && at + kPack<float> <= x.size", "vectors"),
    Mutation(KERNELS, "k < at + kPack<float> && k < x.size", "k < at + kPack<float>"),
    Mutation(KERNELS, "streams.tensor[i].first_block > block", "false"),
    Mutation(KERNELS, "block - x.first_block", "block"),
    Mutation(KERNELS, "x.teacher != nullptr", "true", "store_four(x.exp_avg_sq + i, v);"),
    Mutation(KERNELS, "x.teacher != nullptr", "true", "x.exp_avg_sq[i] = v;"),
    Mutation(UPDATE, "first += kTensorsPerLaunch", "first += kTensorsPerLaunch - 1"),
    Mutation(UPDATE, "divide_up(t.size, int64_t{kElementsPerBlock})", "t.size / kElementsPerBlock"),
    Mutation(UPDATE, "n_blocks == 0", "false"),
]
