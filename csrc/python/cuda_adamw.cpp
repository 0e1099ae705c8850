// franca_fast._C.cuda: the update of student and teacher.
#include "franca/cuda/adamw_update.hpp"
#include "python/adamw_update.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void update(const AdamWArguments& arguments, Address workspace, std::size_t workspace_bytes,
            Address stream) {
  const AdamWTensors tensors(arguments);
  cuda::adamw_update(tensors.view, pointer<void>(workspace), workspace_bytes,
                     pointer<void>(stream));
}

}  // namespace

void bind_cuda_adamw(py::module_& m) {
  m.def("adamw_workspace", &cuda::adamw_workspace);
  m.def("adamw_update", &update);
}

}  // namespace franca::python
