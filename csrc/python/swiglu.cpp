#include "franca/swiglu.hpp"

#include "python/bindings.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

std::vector<Head> unpack(const Numbers& numbers, std::size_t count) {
  const std::vector<Head> matrices = unpack_heads(numbers);
  if (matrices.size() != count) throw std::invalid_argument("swiglu: another number of matrices");
  return matrices;
}

// h and out.
void forward(const Numbers& numbers, int64_t n_rows, int dtype, int threads) {
  const std::vector<Head> m = unpack(numbers, 2);
  py::gil_scoped_release release;
  cpu::swiglu(m[0], m[1], n_rows, static_cast<DType>(dtype), threads);
}

// h, dout and dh.
void backward(const Numbers& numbers, int64_t n_rows, int dtype, int threads) {
  const std::vector<Head> m = unpack(numbers, 3);
  py::gil_scoped_release release;
  cpu::swiglu_gradient(m[0], m[1], m[2], n_rows, static_cast<DType>(dtype), threads);
}

}  // namespace

void bind_swiglu(py::module_& m) {
  m.def("swiglu", &forward);
  m.def("swiglu_gradient", &backward);
}

}  // namespace franca::python
