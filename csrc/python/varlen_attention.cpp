#include "python/varlen_attention.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void forward(const AttentionArguments& problem, const Packed& out, Address lse, int threads) {
  py::gil_scoped_release release;
  cpu::attention_forward(problem.view, heads_of(out), pointer<float>(lse), threads);
}

void backward(const AttentionArguments& problem, const Packed& grad_out, Address lse,
              const Packed& dq, const Packed& dk, const Packed& dv, int threads) {
  py::gil_scoped_release release;
  cpu::attention_backward(problem.view, heads_of(grad_out), pointer<const float>(lse), heads_of(dq),
                          heads_of(dk), heads_of(dv), threads);
}

}  // namespace

void bind_varlen_attention(py::module_& m) {
  py::class_<AttentionArguments>(m, "AttentionProblem")
      .def(py::init<const Packed&, const Packed&, const Packed&, const Numbers&, int64_t, int64_t,
                    int64_t, int, double>());
  m.def("attention_forward", &forward);
  m.def("attention_backward", &backward);
}

}  // namespace franca::python
