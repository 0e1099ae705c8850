// franca_fast._C.cuda: attention over packed sequences.
#include <tuple>

#include "franca/cuda/varlen_attention.hpp"
#include "python/bindings.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;
// Address, token stride and head stride.
using Packed = std::tuple<Address, int64_t, int64_t>;

cuda::PackedHeads heads_of(const Packed& packed) {
  return {pointer<void>(std::get<0>(packed)), std::get<1>(packed), std::get<2>(packed)};
}

// What forward and backward have in common, kept alive for the time of a call.
struct AttentionProblem {
  // `numbers`: first token, number of sequences and length of each run.
  AttentionProblem(const Packed& q, const Packed& k, const Packed& v,
                   const std::vector<int64_t>& numbers, int64_t n_tokens, int64_t n_heads,
                   int64_t head_dim, int dtype, double scale) {
    if (numbers.size() % 3 != 0) throw std::invalid_argument("runs: three numbers each are needed");
    for (std::size_t i = 0; i < numbers.size(); i += 3) {
      runs.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
    }
    view = {heads_of(q),
            heads_of(k),
            heads_of(v),
            runs.data(),
            static_cast<int64_t>(runs.size()),
            n_tokens,
            n_heads,
            head_dim,
            static_cast<DType>(dtype),
            scale};
  }
  AttentionProblem(const AttentionProblem&) = delete;
  AttentionProblem& operator=(const AttentionProblem&) = delete;

  std::vector<cuda::SequenceRun> runs;
  cuda::AttentionProblem view{};
};

void forward(const AttentionProblem& problem, const Packed& out, Address lse, Address stream) {
  cuda::attention_forward(problem.view, heads_of(out), pointer<float>(lse), pointer<void>(stream));
}

std::size_t backward_workspace(const AttentionProblem& problem) {
  return cuda::attention_backward_workspace(problem.view);
}

void backward(const AttentionProblem& problem, const Packed& grad_out, const Packed& out,
              Address lse, const Packed& dq, const Packed& dk, const Packed& dv, Address workspace,
              std::size_t workspace_bytes, Address stream) {
  cuda::attention_backward(problem.view, heads_of(grad_out), heads_of(out),
                           pointer<const float>(lse), heads_of(dq), heads_of(dk), heads_of(dv),
                           pointer<void>(workspace), workspace_bytes, pointer<void>(stream));
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
  py::class_<AttentionProblem>(m, "AttentionProblem")
      .def(py::init<const Packed&, const Packed&, const Packed&, const std::vector<int64_t>&,
                    int64_t, int64_t, int64_t, int, double>());
  m.def("attention_forward", &forward);
  m.def("attention_backward_workspace", &backward_workspace);
  m.def("attention_backward", &backward);
}

}  // namespace franca::python
