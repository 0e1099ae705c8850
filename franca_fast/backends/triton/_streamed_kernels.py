"""Kernels of the streamed operators: score tiles come from features and prototypes, on chip.

A tile of scores is z[n, k] = scale[k] * <x[n], v[k]>, accumulated in float32 on the tensor cores
and never stored. Tiles whose rows are summed are [ROWS, COLUMNS] and tiles whose columns are summed
are [COLUMNS, ROWS]: a matrix product leaves most of a tile's row in one thread, so that summing
along the last axis exchanges little between threads.
"""

# Triton gives the arguments of kernels their types, at each launch.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from franca_fast.backends.triton import interpreted
from franca_fast.backends.triton._heads import (
    LOWEST,
    add_exponentials,
    locate,
    pick,
    teacher_potentials,
)

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def products(
    left,  # pointers to vectors of `depth` elements, [I]
    left_inside,  # [I]
    right,  # likewise, [J]
    right_inside,  # [J]
    depth,
    DEPTH: tl.constexpr,
):
    """<left[i], right[j]>, [I, J] float32; zero outside."""
    tile = tl.zeros([left.shape[0], right.shape[0]], tl.float32)
    for start in range(0, depth, DEPTH):
        c = start + tl.arange(0, DEPTH)
        x_inside = left_inside[:, None] & (c < depth)[None, :]
        y_inside = (c < depth)[:, None] & right_inside[None, :]
        x = tl.load(left[:, None] + c[None, :], mask=x_inside, other=0.0)  # [I, DEPTH]
        y = tl.load(right[None, :] + c[:, None], mask=y_inside, other=0.0)  # [DEPTH, J]
        if INTERPRETED:  # the interpreter multiplies the bits of bfloat16 as integers
            x, y = x.to(tl.float32), y.to(tl.float32)
        # Exact products for float32: TensorFloat-32 would round the features.
        tile = tl.dot(x, y, tile, input_precision="ieee")
    return tile


@triton.jit
def targets(
    x,  # features of one teacher head, [N, C]
    x_stride,
    v_rows,  # pointers to the columns' prototypes, [COLUMNS]
    factor,  # scale / T of the columns, [COLUMNS]
    a,  # [COLUMNS]
    inside,  # [COLUMNS]
    depth,
    row,  # potentials of this head, [N]
    n_teacher,  # N
    teacher_rows,  # [M, P]
    m,  # [ROWS]
    valid,  # [ROWS]
    n_targets,
    DEPTH: tl.constexpr,
    COLUMNS_FIRST: tl.constexpr,
):
    """q: the sum over the teacher rows that meet row m of exp(z/T + a + b).

    Returns:
        [COLUMNS, ROWS] or [ROWS, COLUMNS].
    """
    if COLUMNS_FIRST:
        q = tl.zeros([v_rows.shape[0], m.shape[0]], tl.float32)
    else:
        q = tl.zeros([m.shape[0], v_rows.shape[0]], tl.float32)
    for p in range(n_targets):
        n, b = teacher_potentials(row, n_teacher, teacher_rows, m, valid, n_targets, p)
        x_rows = x + n * x_stride
        if COLUMNS_FIRST:
            z = products(v_rows, inside, x_rows, valid, depth, DEPTH)
            q += tl.exp(tl.fma(z, factor[:, None], a[:, None]) + b[None, :])
        else:
            z = products(x_rows, valid, v_rows, inside, depth, DEPTH)
            q += tl.exp(tl.fma(z, factor[None, :], a[None, :]) + b[:, None])
    return q


@triton.jit(do_not_specialize=["n_all", "n_valid", "split_rows", "inverse_temperature"])
def column_logsumexp_kernel(
    columns,
    features,  # for each head [N, C]
    feature_strides,
    depths,
    prototypes,  # for each head [K, C]
    prototype_strides,
    scales,  # for each head [K]
    maximum_out,  # [splits, sum K]
    total_out,  # [splits, sum K]
    n_all,  # sum K
    n_valid,
    split_rows,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    head, column, head_column, _, n_columns = locate(tl.program_id(0), columns, COLUMNS, HEADS)
    split = tl.program_id(1)
    k = column + tl.arange(0, COLUMNS)
    inside = k < n_columns
    depth = pick(depths, head, HEADS)
    x_head = pick(features, head, HEADS)
    x_stride = pick(feature_strides, head, HEADS)
    v_stride = pick(prototype_strides, head, HEADS)
    v_rows = pick(prototypes, head, HEADS) + k.to(tl.int64) * v_stride
    factor = tl.load(pick(scales, head, HEADS) + k, mask=inside, other=0.0) * inverse_temperature
    maximum = tl.full([COLUMNS], LOWEST, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    stop = tl.minimum((split + 1) * split_rows, n_valid)
    for start in range(split * split_rows, stop, ROWS):
        n = start + tl.arange(0, ROWS)
        valid = n < stop
        z = products(v_rows, inside, x_head + n.to(tl.int64) * x_stride, valid, depth, DEPTH)
        x = tl.where(valid[None, :], z * factor[:, None], float("-inf"))  # [COLUMNS, ROWS]
        maximum, total = add_exponentials(x, maximum, total, 1)
    at = split.to(tl.int64) * n_all + head_column + k
    tl.store(maximum_out + at, maximum, mask=inside)
    tl.store(total_out + at, total, mask=inside)


@triton.jit(do_not_specialize=["part_stride", "n_valid", "inverse_temperature"])
def row_partials_kernel(
    columns,
    features,  # for each head [N, C]
    feature_strides,
    depths,
    prototypes,  # for each head [K, C]
    prototype_strides,
    scales,  # for each head [K]
    potential,  # [sum K]
    maximum_out,  # [units, N]
    total_out,  # [units, N]
    width,
    part_stride,
    n_valid,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    unit = tl.program_id(1)
    head, column, head_column, _, n_columns = locate(unit, columns, width, HEADS)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = n < n_valid
    depth = pick(depths, head, HEADS)
    x_stride = pick(feature_strides, head, HEADS)
    x_rows = pick(features, head, HEADS) + n.to(tl.int64) * x_stride
    v_head = pick(prototypes, head, HEADS)
    v_stride = pick(prototype_strides, head, HEADS)
    scale_head = pick(scales, head, HEADS)
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(column, tl.minimum(column + width, n_columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        inside = k < n_columns
        v_rows = v_head + k.to(tl.int64) * v_stride
        z = products(x_rows, valid, v_rows, inside, depth, DEPTH)
        factor = tl.load(scale_head + k, mask=inside, other=0.0) * inverse_temperature
        a = tl.load(potential + head_column + k, mask=inside, other=float("-inf"))
        x = tl.fma(z, factor[None, :], a[None, :])  # [ROWS, COLUMNS]
        maximum, total = add_exponentials(x, maximum, total, 1)
    at = unit.to(tl.int64) * part_stride + n
    tl.store(maximum_out + at, maximum, mask=valid)
    tl.store(total_out + at, total, mask=valid)


@triton.jit(do_not_specialize=["n_all", "n_rows", "n_valid", "split_rows", "inverse_temperature"])
def mass_kernel(
    columns,
    features,  # for each head [N, C]
    feature_strides,
    depths,
    prototypes,  # for each head [K, C]
    prototype_strides,
    scales,  # for each head [K]
    potential,  # [sum K]
    row_maximum,  # [H, N]
    row_total,  # [H, N]
    mass_out,  # [splits, sum K]
    n_all,  # sum K
    n_rows,
    n_valid,
    split_rows,
    inverse_temperature,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    head, column, head_column, _, n_columns = locate(tl.program_id(0), columns, COLUMNS, HEADS)
    split = tl.program_id(1)
    k = column + tl.arange(0, COLUMNS)
    inside = k < n_columns
    depth = pick(depths, head, HEADS)
    x_head = pick(features, head, HEADS)
    x_stride = pick(feature_strides, head, HEADS)
    v_stride = pick(prototype_strides, head, HEADS)
    v_rows = pick(prototypes, head, HEADS) + k.to(tl.int64) * v_stride
    factor = tl.load(pick(scales, head, HEADS) + k, mask=inside, other=0.0) * inverse_temperature
    a = tl.load(potential + head_column + k, mask=inside, other=0.0)
    mass = tl.zeros([COLUMNS], tl.float32)
    stop = tl.minimum((split + 1) * split_rows, n_valid)
    for start in range(split * split_rows, stop, ROWS):
        n = start + tl.arange(0, ROWS)
        valid = n < stop
        z = products(v_rows, inside, x_head + n.to(tl.int64) * x_stride, valid, depth, DEPTH)
        at = head.to(tl.int64) * n_rows + n
        # An infinite maximum makes the terms of rows outside zero.
        maximum = tl.load(row_maximum + at, mask=valid, other=float("inf"))
        total = tl.load(row_total + at, mask=valid, other=1.0)
        x = tl.fma(z, factor[:, None], a[:, None])  # [COLUMNS, ROWS]
        mass += tl.sum(tl.exp(x - maximum[None, :]) * (1.0 / total)[None, :], 1)
    at = split.to(tl.int64) * n_all + head_column + k
    tl.store(mass_out + at, mass, mask=inside)


@triton.jit(
    do_not_specialize=[
        "part_stride",
        "n_rows",
        "n_teacher",
        "n_targets",
        "inverse_student",
        "inverse_teacher",
    ]
)
def forward_kernel(
    columns,
    features,  # student, for each head [M, C]
    feature_strides,
    depths,
    prototypes,  # for each head [K, C]
    prototype_strides,
    scales,  # for each head [K]
    teacher_features,  # for each head [N, C]
    teacher_feature_strides,
    teacher_depths,
    teacher_prototypes,  # for each head [K, C]
    teacher_prototype_strides,
    teacher_scales,  # for each head [K]
    potential,  # [sum K]
    row,  # [H, N]
    teacher_rows,  # [M, P]
    maximum_out,  # [units, M]
    total_out,  # [units, M]
    agreement_out,  # [units, M]
    width,
    part_stride,
    n_rows,
    n_teacher,
    n_targets,
    inverse_student,
    inverse_teacher,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    unit = tl.program_id(1)
    head, column, head_column, _, n_columns = locate(unit, columns, width, HEADS)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = m < n_rows
    x_stride = pick(feature_strides, head, HEADS)
    x_rows = pick(features, head, HEADS) + m.to(tl.int64) * x_stride
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    agreement = tl.zeros([ROWS], tl.float32)
    for start in range(column, tl.minimum(column + width, n_columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        wide_k = k.to(tl.int64)
        inside = k < n_columns
        a = tl.load(potential + head_column + k, mask=inside, other=float("-inf"))
        t_factor = tl.load(pick(teacher_scales, head, HEADS) + k, mask=inside, other=0.0)
        t_stride = pick(teacher_prototype_strides, head, HEADS)
        q = targets(
            pick(teacher_features, head, HEADS),
            pick(teacher_feature_strides, head, HEADS),
            pick(teacher_prototypes, head, HEADS) + wide_k * t_stride,
            t_factor * inverse_teacher,
            a,
            inside,
            pick(teacher_depths, head, HEADS),
            row + head.to(tl.int64) * n_teacher,
            n_teacher,
            teacher_rows,
            m,
            valid,
            n_targets,
            DEPTH,
            False,
        )  # [ROWS, COLUMNS]; zero outside
        v_stride = pick(prototype_strides, head, HEADS)
        v_rows = pick(prototypes, head, HEADS) + wide_k * v_stride
        s = products(x_rows, valid, v_rows, inside, pick(depths, head, HEADS), DEPTH)
        factor = tl.load(pick(scales, head, HEADS) + k, mask=inside, other=0.0) * inverse_student
        x = s * factor[None, :]
        agreement += tl.sum(q * x, 1)
        x = tl.where(inside[None, :], x, float("-inf"))
        maximum, total = add_exponentials(x, maximum, total, 1)
    at = unit.to(tl.int64) * part_stride + m
    tl.store(maximum_out + at, maximum, mask=valid)
    tl.store(total_out + at, total, mask=valid)
    tl.store(agreement_out + at, agreement, mask=valid)


@triton.jit(
    do_not_specialize=[
        "n_rows",
        "n_columns",
        "n_teacher",
        "n_targets",
        "inverse_student",
        "inverse_teacher",
    ]
)
def gradient_kernel(
    grad_loss,  # [1], of this head
    features,  # student, [M, C]
    feature_stride,
    depth,
    prototypes,  # [K', C]: the columns of one chunk of one head, as are all that follow
    prototype_stride,
    scale,  # [K']
    teacher_features,  # [N, C]
    teacher_feature_stride,
    teacher_depth,
    teacher_prototypes,  # [K', C]
    teacher_prototype_stride,
    teacher_scale,  # [K']
    potential,  # [K']
    row,  # [N]
    lse,  # [M]
    teacher_rows,  # [M, P]
    weights,  # [M]
    product_grad_out,  # [K', M and padding], gradient of <x[m], v[k]>
    scale_grad_out,  # [row blocks, K']
    n_rows,
    n_columns,  # K'
    n_teacher,
    n_targets,
    inverse_student,
    inverse_teacher,
    out_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide_m, wide_k = m.to(tl.int64), k.to(tl.int64)
    valid, inside = m < n_rows, k < n_columns
    q = targets(
        teacher_features,
        teacher_feature_stride,
        teacher_prototypes + wide_k * teacher_prototype_stride,
        tl.load(teacher_scale + k, mask=inside, other=0.0) * inverse_teacher,
        tl.load(potential + k, mask=inside, other=0.0),
        inside,
        teacher_depth,
        row,
        n_teacher,
        teacher_rows,
        m,
        valid,
        n_targets,
        DEPTH,
        True,
    )  # [COLUMNS, ROWS], as all tiles here
    x_rows = features + wide_m * feature_stride
    v_rows = prototypes + wide_k * prototype_stride
    product = products(v_rows, inside, x_rows, valid, depth, DEPTH)
    s_scale = tl.load(scale + k, mask=inside, other=0.0)
    row_lse = tl.load(lse + m, mask=valid, other=0.0)
    softmax = tl.exp(product * (s_scale * inverse_student)[:, None] - row_lse[None, :])
    factor = tl.load(weights + m, mask=valid, other=0.0) * tl.load(grad_loss) * inverse_student
    gradient = tl.where(valid[None, :], factor[None, :] * (n_targets * softmax - q), 0.0)
    scale_at = tl.program_id(0).to(tl.int64) * n_columns + k
    tl.store(scale_grad_out + scale_at, tl.sum(gradient * product, 1), mask=inside)
    # Zeros go to the padding of the last rows too: a library's product may read it.
    gradient *= s_scale[:, None]
    at = wide_k[:, None] * out_stride + m[None, :]
    stored = inside[:, None] & (m < out_stride)[None, :]
    tl.store(product_grad_out + at, gradient.to(product_grad_out.dtype.element_ty), mask=stored)
