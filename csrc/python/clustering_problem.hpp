// The inputs of the clustering cross-entropy as Python passes them, for CPU and CUDA.
#pragma once

#include "franca/clustering_cross_entropy.hpp"
#include "python/bindings.hpp"

namespace franca::python {

// What forward and backward have in common, kept alive for the time of a call.
struct ClusteringProblem {
  ClusteringProblem(const std::vector<int64_t>& student, int64_t n_student_rows, int student_dtype,
                    const std::vector<int64_t>& teacher, int64_t n_teacher_rows, int teacher_dtype,
                    Address prototype, Address row, double student_temperature,
                    double teacher_temperature, Address teacher_rows, int64_t n_targets,
                    Address weights)
      : student_heads(unpack_heads(student)),
        teacher_heads(unpack_heads(teacher)),
        view{logits_of(student_heads, n_student_rows, student_dtype),
             logits_of(teacher_heads, n_teacher_rows, teacher_dtype),
             pointer<const float>(prototype),
             pointer<const float>(row),
             student_temperature,
             teacher_temperature,
             pointer<const int64_t>(teacher_rows),
             n_targets,
             pointer<const float>(weights)} {}
  ClusteringProblem(const ClusteringProblem&) = delete;
  ClusteringProblem& operator=(const ClusteringProblem&) = delete;

  std::vector<Head> student_heads;
  std::vector<Head> teacher_heads;
  cpu::ClusteringProblem view;
};

}  // namespace franca::python
