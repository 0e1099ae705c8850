#include "python/weight_norm.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void normalize_prototypes(const MatrixNumbers& v, Address g, int64_t count, const MatrixNumbers& w,
                          int threads) {
  const Prototypes prototypes = unpack_prototypes(v, g, count);
  const Head out = unpack_matrix(w);
  py::gil_scoped_release release;
  cpu::normalize_prototypes(prototypes, out, dtype_of(w), threads);
}

void prototype_gradients(const MatrixNumbers& v, Address g, int64_t count, const MatrixNumbers& dw,
                         Address dscale, const MatrixNumbers& dv, Address dg, int threads) {
  const Prototypes prototypes = unpack_prototypes(v, g, count);
  const PrototypeGradients gradients = unpack_gradients(dw, dscale, dv, dg);
  py::gil_scoped_release release;
  cpu::prototype_gradients(prototypes, gradients, threads);
}

}  // namespace

void bind_weight_norm(py::module_& m) {
  m.def("normalize_prototypes", &normalize_prototypes);
  m.def("prototype_gradients", &prototype_gradients);
}

}  // namespace franca::python
