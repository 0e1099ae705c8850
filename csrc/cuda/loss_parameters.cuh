// What the clustering cross-entropy of stored and of streamed scores have in common.
#pragma once

#include "cuda/logits.cuh"

namespace franca::cuda {

struct LossParameters {
  int64_t n_teacher_rows;
  const float* prototype;
  const float* row;
  InverseTemperature student_scale;
  InverseTemperature teacher_scale;
  const int64_t* teacher_rows;
  const float* weights;
  int n_targets;

  // The p-th teacher row that student row m meets, negative for one that does not exist.
  __device__ __forceinline__ int64_t teacher_row(int64_t m, int p) const {
    const int64_t n = teacher_rows[m * n_targets + p];
    return n < n_teacher_rows ? n : -1;
  }

  // Its potential; nan where it does not exist, so that nothing hides it.
  __device__ __forceinline__ float row_potential(int h, int64_t n) const {
    return n < 0 ? NAN : row[h * n_teacher_rows + n];
  }
};

template <class Problem>
LossParameters loss_parameters(const Problem& problem) {
  const int64_t n_targets = problem.n_targets, n_teacher_rows = problem.teacher.n_rows;
  if (n_targets < 1 || n_targets > INT32_MAX) {
    throw std::invalid_argument("teacher_rows: at least one row is needed");
  }
  if (n_teacher_rows < 1 && problem.student.n_rows > 0) {
    throw std::invalid_argument("teacher: no rows for the student to meet");
  }
  return {n_teacher_rows,
          problem.prototype,
          problem.row,
          inverse(problem.student_temperature),
          inverse(problem.teacher_temperature),
          problem.teacher_rows,
          problem.weights,
          static_cast<int>(n_targets)};
}

// Workspace of the forward pass.
struct LossMemory {
  float4* partial;  // maximum, total and agreement [m, slice]
  float* value;     // [head, m]
};

inline LossMemory loss_memory(Workspace& memory, const Heads& scores) {
  auto* partial = memory.take<float4>(scores.n_rows * scores.n_slices);
  return {partial, memory.take<float>(scores.n_heads * scores.n_rows)};
}

}  // namespace franca::cuda
