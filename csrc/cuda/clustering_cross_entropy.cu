#include "franca/cuda/clustering_cross_entropy.hpp"

#include <type_traits>

#include "cuda/clustering_kernels.cuh"
#include "cuda/merges.cuh"
#include "cuda/primitives/launch.cuh"

namespace franca::cuda {
namespace {

ClusteringParameters parameters_of(const ClusteringProblem& problem) {
  ClusteringParameters p{};
  static_cast<LossParameters&>(p) = loss_parameters(problem);
  p.student = make_heads(problem.student);
  p.teacher = make_heads(problem.teacher);
  bool same = p.student.n_heads == p.teacher.n_heads;
  for (int h = 0; same && h < p.student.n_heads; ++h) {
    same = p.student.head[h].columns == p.teacher.head[h].columns;
  }
  if (!same) throw std::invalid_argument("student and teacher differ in their columns");
  return p;
}

LaunchShape slice_shape(ClusteringParameters& p) {
  const Chunks chunks = short_chunks(p.student.n_rows, p.student.n_slices, multiprocessors());
  p.rows_per_chunk = chunks.rows;
  return {grid_of(p.student.n_slices, chunks.count), kThreads, kSliceBytes};
}

// Calls body(type of the student, of the teacher, number of targets); 0 stands for any number. Only
// what training uses has kernels of its own: both of one type, and one or two targets.
template <class Body>
void with_types(const ClusteringProblem& problem, Body body) {
  using Any = std::integral_constant<int, 0>;
  with_type(problem.student.dtype, [&](auto* student) {
    if (problem.student.dtype == problem.teacher.dtype && problem.n_targets == 1) {
      body(student, student, std::integral_constant<int, 1>{});
    } else if (problem.student.dtype == problem.teacher.dtype && problem.n_targets == 2) {
      body(student, student, std::integral_constant<int, 2>{});
    } else {
      with_type(problem.teacher.dtype, [&](auto* teacher) { body(student, teacher, Any{}); });
    }
  });
}

}  // namespace

std::size_t clustering_forward_workspace(const ClusteringProblem& problem) {
  Workspace memory(nullptr, 0);
  loss_memory(memory, make_heads(problem.student));
  return memory.used();
}

void clustering_forward(const ClusteringProblem& problem, float* loss, float* lse, void* workspace,
                        std::size_t workspace_bytes, void* stream) {
  ClusteringParameters p = parameters_of(problem);
  Workspace memory(workspace, workspace_bytes);
  const LossMemory temporary = loss_memory(memory, p.student);
  const int64_t n_rows = p.student.n_rows;
  if (n_rows > 0) {
    const LaunchShape shape = slice_shape(p);
    with_types(problem, [&](auto* student, auto* teacher, auto targets) {
      using S = std::remove_pointer_t<decltype(student)>;
      using Z = std::remove_pointer_t<decltype(teacher)>;
      launch(clustering_forward_kernel<S, Z, decltype(targets)::value>, shape, stream, p,
             temporary.partial);
    });
  }
  merge_losses(p.student, p.student_scale, p.n_targets, p.weights, temporary.partial, lse,
               temporary.value, loss, stream);
}

void clustering_backward(const ClusteringProblem& problem, const float* grad_loss, const float* lse,
                         const Head* gradient, void* stream) {
  ClusteringParameters p = parameters_of(problem);
  if (p.student.n_rows == 0) return;
  const Heads out = make_heads(
      {gradient, problem.student.n_heads, problem.student.n_rows, problem.student.dtype});
  const LaunchShape shape = slice_shape(p);
  with_types(problem, [&](auto* student, auto* teacher, auto targets) {
    using S = std::remove_pointer_t<decltype(student)>;
    using Z = std::remove_pointer_t<decltype(teacher)>;
    launch(clustering_backward_kernel<S, Z, decltype(targets)::value>, shape, stream, p, out,
           grad_loss, lse);
  });
}

}  // namespace franca::cuda
