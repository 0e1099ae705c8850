"""Defects that test_adamw.cpp has to notice."""

from __future__ import annotations

from mutations._shared import Mutation

ELEMENTS = "adamw_elements.cuh"
UPDATE = "adamw_update.cu"

ADAMW = [
    Mutation(UPDATE, "!*in.finite", "false", "adamw_factors_kernel("),
    Mutation(UPDATE, "!*in.finite", "false", "adamw_kernel("),
    Mutation(UPDATE, "i >= rates.n_tensors", "i >= kTensorsPerLaunch"),
    Mutation(UPDATE, "*tensor.step + 1.0f", "*tensor.step"),
    Mutation(UPDATE, "*tensor.step = step;", ";"),
    Mutation(UPDATE, "in.clip_factors[tensor.module]", "in.clip_factors[0]"),
    Mutation(UPDATE, "in.clip_factors != nullptr", "true"),
    Mutation(UPDATE, "rates.first + i", "i"),
    Mutation(UPDATE, "streams.first + i", "i"),
    Mutation(ELEMENTS, "gradient * f.clip", "gradient"),
    Mutation(ELEMENTS, "p * f.taken_student", "p"),
    Mutation(ELEMENTS, "all % kPackBytes == 0", "true"),
    Mutation(UPDATE, "vectors && at + kPack<float> <= x.size", "vectors"),
    Mutation(UPDATE, "k < at + kPack<float> && k < x.size", "k < at + kPack<float>"),
    Mutation(UPDATE, "streams.tensor[i].first_block > block", "false"),
    Mutation(UPDATE, "block - x.first_block", "block"),
    Mutation(ELEMENTS, "x.teacher != nullptr", "true", "store_four(x.exp_avg_sq + i, v);"),
    Mutation(ELEMENTS, "x.teacher != nullptr", "true", "x.exp_avg_sq[i] = v;"),
    Mutation(UPDATE, "first += kTensorsPerLaunch", "first += kTensorsPerLaunch - 1"),
    Mutation(UPDATE, "divide_up(t.size, int64_t{kElementsPerBlock})", "t.size / kElementsPerBlock"),
    Mutation(UPDATE, "n_blocks == 0", "false"),
]
