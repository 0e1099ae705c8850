// franca_fast._C.cuda: the operators on scores that are factors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "franca/cuda/streamed_clustering.hpp"
#include "python/bindings.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;
using Numbers = std::vector<int64_t>;
using Factors = std::tuple<Numbers, Numbers, Numbers, std::vector<Address>, int64_t, int>;

// A side as Python passes it, kept alive for the time of a call.
struct Side {
  Side(const Numbers& feature_numbers, const Numbers& prototype_numbers, const Numbers& columns,
       const std::vector<Address>& scale_addresses, int64_t n_rows, int dtype)
      : features(unpack_heads(feature_numbers)),
        prototypes(unpack_heads(prototype_numbers)),
        n_prototypes(columns) {
    for (Address address : scale_addresses) scales.push_back(pointer<const float>(address));
    if (prototypes.size() != features.size() || n_prototypes.size() != features.size() ||
        scales.size() != features.size()) {
      throw std::invalid_argument("features, prototypes and scales: one of each per head");
    }
    view = {features.data(),
            prototypes.data(),
            n_prototypes.data(),
            scales.data(),
            static_cast<int64_t>(features.size()),
            n_rows,
            static_cast<DType>(dtype)};
  }
  explicit Side(const Factors& f)
      : Side(std::get<0>(f), std::get<1>(f), std::get<2>(f), std::get<3>(f), std::get<4>(f),
             std::get<5>(f)) {}
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;

  std::vector<Head> features, prototypes;
  Numbers n_prototypes;
  std::vector<const float*> scales;
  cuda::ScoreSide view{};
};

struct StreamedProblem {
  StreamedProblem(const Factors& student_factors, const Factors& teacher_factors, Address prototype,
                  Address row, double student_temperature, double teacher_temperature,
                  Address teacher_rows, int64_t n_targets, Address weights)
      : student(student_factors),
        teacher(teacher_factors),
        view{student.view,
             teacher.view,
             pointer<const float>(prototype),
             pointer<const float>(row),
             student_temperature,
             teacher_temperature,
             pointer<const int64_t>(teacher_rows),
             n_targets,
             pointer<const float>(weights)} {}

  Side student, teacher;
  cuda::StreamedProblem view;
};

void prototype_scores(const Numbers& features, const Numbers& prototypes, const Numbers& columns,
                      const std::vector<Address>& scales, int64_t n_rows, int dtype,
                      const Numbers& out, Address stream) {
  const Side side(features, prototypes, columns, scales, n_rows, dtype);
  const std::vector<Head> heads = unpack_heads(out);
  if (heads.size() != side.features.size()) throw std::invalid_argument("out: one per head");
  cuda::prototype_scores(side.view, heads.data(), pointer<void>(stream));
}

std::size_t column_workspace(const Numbers& features, const Numbers& prototypes,
                             const Numbers& columns, const std::vector<Address>& scales,
                             int64_t n_rows, int dtype, int64_t n_valid) {
  const Side side(features, prototypes, columns, scales, n_rows, dtype);
  return cuda::streamed_column_workspace(side.view, n_valid);
}

void column_logsumexp(const Numbers& features, const Numbers& prototypes, const Numbers& columns,
                      const std::vector<Address>& scales, int64_t n_rows, int dtype,
                      double temperature, int64_t n_valid, Address maximum, Address total,
                      Address workspace, std::size_t workspace_bytes, Address stream) {
  const Side side(features, prototypes, columns, scales, n_rows, dtype);
  cuda::streamed_column_logsumexp(side.view, temperature, n_valid, pointer<float>(maximum),
                                  pointer<float>(total), pointer<void>(workspace), workspace_bytes,
                                  pointer<void>(stream));
}

std::size_t row_step_workspace(const Numbers& features, const Numbers& prototypes,
                               const Numbers& columns, const std::vector<Address>& scales,
                               int64_t n_rows, int dtype, int64_t n_valid) {
  const Side side(features, prototypes, columns, scales, n_rows, dtype);
  return cuda::streamed_row_step_workspace(side.view, n_valid);
}

void row_step(const Numbers& features, const Numbers& prototypes, const Numbers& columns,
              const std::vector<Address>& scales, int64_t n_rows, int dtype, double temperature,
              Address prototype, int64_t n_valid, Address row, Address mass, Address workspace,
              std::size_t workspace_bytes, Address stream) {
  const Side side(features, prototypes, columns, scales, n_rows, dtype);
  cuda::streamed_row_step(side.view, temperature, pointer<const float>(prototype), n_valid,
                          pointer<float>(row), pointer<float>(mass), pointer<void>(workspace),
                          workspace_bytes, pointer<void>(stream));
}

std::size_t forward_workspace(const StreamedProblem& problem) {
  return cuda::streamed_forward_workspace(problem.view);
}

void forward(const StreamedProblem& problem, Address loss, Address lse, Address workspace,
             std::size_t workspace_bytes, Address stream) {
  cuda::streamed_forward(problem.view, pointer<float>(loss), pointer<float>(lse),
                         pointer<void>(workspace), workspace_bytes, pointer<void>(stream));
}

void gradient(const StreamedProblem& problem, Address grad_loss, Address lse, Address out,
              int64_t out_stride, Address scale_partial, Address stream) {
  cuda::streamed_gradient(problem.view, pointer<const float>(grad_loss), pointer<const float>(lse),
                          pointer<void>(out), out_stride, pointer<float>(scale_partial),
                          pointer<void>(stream));
}

}  // namespace

void bind_cuda_streamed(py::module_& m) {
  py::class_<StreamedProblem>(m, "StreamedProblem")
      .def(py::init<const Factors&, const Factors&, Address, Address, double, double, Address,
                    int64_t, Address>());
  m.def("prototype_scores", &prototype_scores);
  m.def("streamed_column_workspace", &column_workspace);
  m.def("streamed_column_logsumexp", &column_logsumexp);
  m.def("streamed_row_step_workspace", &row_step_workspace);
  m.def("streamed_row_step", &row_step);
  m.def("streamed_forward_workspace", &forward_workspace);
  m.def("streamed_forward", &forward);
  m.def("streamed_row_tiles", &cuda::streamed_row_tiles);
  m.def("streamed_gradient", &gradient);
}

}  // namespace franca::python
