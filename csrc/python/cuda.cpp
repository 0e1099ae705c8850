// franca_fast._C.cuda: the same operators on device memory, on the stream that is passed.
#include "franca/cuda/clustering_cross_entropy.hpp"
#include "franca/cuda/sinkhorn.hpp"
#include "python/clustering_problem.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

// Ragged logits as Python passes them, kept alive for the time of a call.
struct Logits {
  Logits(const Numbers& numbers, int64_t n_rows, int dtype)
      : heads(unpack_heads(numbers)), view(logits_of(heads, n_rows, dtype)) {}
  std::vector<Head> heads;
  RaggedLogits view;
};

std::size_t column_logsumexp_workspace(const Numbers& heads, int64_t n_rows, int dtype,
                                       int64_t n_valid) {
  return cuda::column_logsumexp_workspace(Logits(heads, n_rows, dtype).view, n_valid);
}

void column_logsumexp(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
                      int64_t n_valid, Address maximum, Address total, Address workspace,
                      std::size_t workspace_bytes, Address stream) {
  cuda::column_logsumexp(Logits(heads, n_rows, dtype).view, temperature, n_valid,
                         pointer<float>(maximum), pointer<float>(total), pointer<void>(workspace),
                         workspace_bytes, pointer<void>(stream));
}

std::size_t row_step_workspace(const Numbers& heads, int64_t n_rows, int dtype, int64_t n_valid,
                               bool with_mass) {
  return cuda::row_step_workspace(Logits(heads, n_rows, dtype).view, n_valid, with_mass);
}

void row_step(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
              Address prototype, int64_t n_valid, Address row, Address mass, Address workspace,
              std::size_t workspace_bytes, Address stream) {
  cuda::row_step(Logits(heads, n_rows, dtype).view, temperature, pointer<const float>(prototype),
                 n_valid, pointer<float>(row), pointer<float>(mass), pointer<void>(workspace),
                 workspace_bytes, pointer<void>(stream));
}

std::size_t assignments_workspace(const Numbers& heads, int64_t n_rows, int dtype) {
  return cuda::assignments_workspace(Logits(heads, n_rows, dtype).view);
}

void assignments(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
                 Address prototype, int64_t n_valid, const std::vector<Address>& out,
                 Address workspace, std::size_t workspace_bytes, Address stream) {
  const Logits logits(heads, n_rows, dtype);
  if (out.size() != logits.heads.size()) throw std::invalid_argument("out: one address per head");
  std::vector<float*> targets;
  for (Address address : out) targets.push_back(pointer<float>(address));
  cuda::assignments(logits.view, temperature, pointer<const float>(prototype), n_valid,
                    targets.data(), pointer<void>(workspace), workspace_bytes,
                    pointer<void>(stream));
}

std::size_t potentials_workspace(const Numbers& heads, int64_t n_rows, int dtype, int64_t n_valid) {
  return cuda::potentials_workspace(Logits(heads, n_rows, dtype).view, n_valid);
}

void potentials(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
                int64_t n_iterations, int64_t n_valid, Address prototype, Address row,
                Address workspace, std::size_t workspace_bytes, Address stream) {
  cuda::potentials(Logits(heads, n_rows, dtype).view, temperature, n_iterations, n_valid,
                   pointer<float>(prototype), pointer<float>(row), pointer<void>(workspace),
                   workspace_bytes, pointer<void>(stream));
}

py::dict row_sharing(const Numbers& heads, int64_t n_rows, int dtype, int64_t n_valid) {
  const cuda::RowSharing sharing = cuda::row_sharing(Logits(heads, n_rows, dtype).view, n_valid);
  py::dict result;
  result["threads"] = sharing.threads;
  result["cluster"] = sharing.cluster;
  result["n_clusters"] = sharing.n_clusters;
  result["groups"] = sharing.groups;
  return result;
}

std::size_t clustering_forward_workspace(const ClusteringProblem& problem) {
  return cuda::clustering_forward_workspace(problem.view);
}

void clustering_forward(const ClusteringProblem& problem, Address loss, Address lse,
                        Address workspace, std::size_t workspace_bytes, Address stream) {
  cuda::clustering_forward(problem.view, pointer<float>(loss), pointer<float>(lse),
                           pointer<void>(workspace), workspace_bytes, pointer<void>(stream));
}

void clustering_backward(const ClusteringProblem& problem, Address grad_loss, Address lse,
                         const Numbers& gradient, Address stream) {
  const std::vector<Head> heads = unpack_heads(gradient);
  if (heads.size() != problem.student_heads.size()) {
    throw std::invalid_argument("gradient: one matrix per head");
  }
  cuda::clustering_backward(problem.view, pointer<const float>(grad_loss),
                            pointer<const float>(lse), heads.data(), pointer<void>(stream));
}

}  // namespace

void bind_cuda(py::module_& parent) {
  py::module_ m = parent.def_submodule("cuda", "Kernels on device memory");
  m.def("has_code", &cuda::has_code, "Whether there are kernels for the current device.");
  m.def("column_logsumexp_workspace", &column_logsumexp_workspace);
  m.def("column_logsumexp", &column_logsumexp);
  m.def("row_step_workspace", &row_step_workspace);
  m.def("row_step", &row_step);
  m.def("assignments_workspace", &assignments_workspace);
  m.def("assignments", &assignments);
  m.def("potentials_workspace", &potentials_workspace);
  m.def("potentials", &potentials);
  m.def("row_sharing", &row_sharing, "How rows and their masses are spread over this device.");
  m.def("clustering_forward_workspace", &clustering_forward_workspace);
  m.def("clustering_forward", &clustering_forward);
  m.def("clustering_backward", &clustering_backward);
  bind_cuda_streamed(m);
  bind_cuda_attention(m);
  bind_cuda_weight_norm(m);
  bind_cuda_adamw(m);
}

}  // namespace franca::python
