#include "franca/clustering_cross_entropy.hpp"

#include "python/clustering_problem.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void forward(const ClusteringProblem& problem, Address loss, Address lse, Address workspace,
             std::size_t workspace_bytes, int threads) {
  py::gil_scoped_release release;
  cpu::clustering_forward(problem.view, pointer<float>(loss), pointer<float>(lse),
                          pointer<void>(workspace), workspace_bytes, threads);
}

void backward(const ClusteringProblem& problem, Address grad_loss, Address lse,
              const Numbers& gradient, int threads) {
  const std::vector<Head> heads = unpack_heads(gradient);
  if (heads.size() != problem.student_heads.size()) {
    throw std::invalid_argument("gradient: one matrix per head");
  }
  py::gil_scoped_release release;
  cpu::clustering_backward(problem.view, pointer<const float>(grad_loss), pointer<const float>(lse),
                           heads.data(), threads);
}

}  // namespace

void bind_clustering_cross_entropy(py::module_& m) {
  py::class_<ClusteringProblem>(m, "ClusteringProblem")
      .def(py::init<const Numbers&, int64_t, int, const Numbers&, int64_t, int, Address, Address,
                    double, double, Address, int64_t, Address>());
  m.def("clustering_forward_workspace", &cpu::clustering_forward_workspace);
  m.def("clustering_forward", &forward);
  m.def("clustering_backward", &backward);
}

}  // namespace franca::python
