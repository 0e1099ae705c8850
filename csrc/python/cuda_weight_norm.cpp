// franca_fast._C.cuda: weight-normalised prototypes.
#include "franca/cuda/weight_norm.hpp"

#include "python/weight_norm.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void normalize_prototypes(const MatrixNumbers& v, Address g, int64_t count, const MatrixNumbers& w,
                          Address stream) {
  cuda::normalize_prototypes(unpack_prototypes(v, g, count), unpack_matrix(w), dtype_of(w),
                             pointer<void>(stream));
}

void prototype_gradients(const MatrixNumbers& v, Address g, int64_t count, const MatrixNumbers& dw,
                         Address dscale, const MatrixNumbers& dv, Address dg, Address stream) {
  cuda::prototype_gradients(unpack_prototypes(v, g, count), unpack_gradients(dw, dscale, dv, dg),
                            pointer<void>(stream));
}

}  // namespace

void bind_cuda_weight_norm(py::module_& m) {
  m.def("normalize_prototypes", &normalize_prototypes);
  m.def("prototype_gradients", &prototype_gradients);
}

}  // namespace franca::python
