#include "franca/sinkhorn.hpp"

#include "python/bindings.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;

void column_logsumexp(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
                      int64_t n_valid, Address maximum, Address total, int threads) {
  const std::vector<Head> views = unpack_heads(heads);
  py::gil_scoped_release release;
  cpu::column_logsumexp(logits_of(views, n_rows, dtype), temperature, n_valid,
                        pointer<float>(maximum), pointer<float>(total), threads);
}

void row_step(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
              Address prototype, int64_t n_valid, Address row, Address mass, Address workspace,
              std::size_t workspace_bytes, int threads) {
  const std::vector<Head> views = unpack_heads(heads);
  py::gil_scoped_release release;
  cpu::row_step(logits_of(views, n_rows, dtype), temperature, pointer<const float>(prototype),
                n_valid, pointer<float>(row), pointer<float>(mass), pointer<void>(workspace),
                workspace_bytes, threads);
}

void assignments(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
                 Address prototype, int64_t n_valid, const std::vector<Address>& out, int threads) {
  const std::vector<Head> views = unpack_heads(heads);
  if (out.size() != views.size()) throw std::invalid_argument("out: one address per head");
  std::vector<float*> targets;
  for (Address address : out) targets.push_back(pointer<float>(address));
  py::gil_scoped_release release;
  cpu::assignments(logits_of(views, n_rows, dtype), temperature, pointer<const float>(prototype),
                   n_valid, targets.data(), threads);
}

std::size_t potentials_workspace(const Numbers& heads, int64_t n_rows, int dtype, int64_t n_valid,
                                 int threads) {
  const std::vector<Head> views = unpack_heads(heads);
  return cpu::potentials_workspace(logits_of(views, n_rows, dtype), n_valid, threads);
}

bool potentials(const Numbers& heads, int64_t n_rows, int dtype, double temperature,
                int64_t n_iterations, int64_t n_valid, Address prototype, Address row,
                Address workspace, std::size_t workspace_bytes, int threads) {
  const std::vector<Head> views = unpack_heads(heads);
  py::gil_scoped_release release;
  return cpu::potentials(logits_of(views, n_rows, dtype), temperature, n_iterations, n_valid,
                         pointer<float>(prototype), pointer<float>(row), pointer<void>(workspace),
                         workspace_bytes, threads);
}

}  // namespace

void bind_sinkhorn(py::module_& m) {
  m.def("column_logsumexp", &column_logsumexp);
  m.def("row_step_workspace", &cpu::row_step_workspace);
  m.def("row_step", &row_step);
  m.def("potentials_workspace", &potentials_workspace);
  m.def("potentials", &potentials);
  m.def("assignments", &assignments);
}

}  // namespace franca::python
