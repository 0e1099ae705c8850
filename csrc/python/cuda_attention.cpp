// franca_fast._C.cuda: attention over packed sequences.
#include "franca/cuda/varlen_attention.hpp"
#include "python/varlen_attention.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void forward(const AttentionArguments& problem, const Packed& out, Address lse, Address stream) {
  cuda::attention_forward(problem.view, heads_of(out), pointer<float>(lse), pointer<void>(stream));
}

std::size_t backward_workspace(const AttentionArguments& problem) {
  return cuda::attention_backward_workspace(problem.view);
}

void backward(const AttentionArguments& problem, const Packed& grad_out, const Packed& out,
              Address lse, const Packed& dq, const Packed& dk, const Packed& dv, Address workspace,
              std::size_t workspace_bytes, Address stream) {
  cuda::attention_backward(problem.view, heads_of(grad_out), heads_of(out),
                           pointer<const float>(lse), heads_of(dq), heads_of(dk), heads_of(dv),
                           pointer<void>(workspace), workspace_bytes, pointer<void>(stream));
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
  m.def("attention_forward", &forward);
  m.def("attention_backward_workspace", &backward_workspace);
  m.def("attention_backward", &backward);
}

}  // namespace franca::python
