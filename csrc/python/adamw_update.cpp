#include "python/adamw_update.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void update(const AdamWArguments& arguments, int threads) {
  const AdamWTensors tensors(arguments);
  py::gil_scoped_release release;
  cpu::adamw_update(tensors.view, threads);
}

}  // namespace

void bind_adamw_update(py::module_& m) {
  m.def("adamw_update", &update);
}

}  // namespace franca::python
