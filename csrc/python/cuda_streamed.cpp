// franca_fast._C.cuda: the operators on scores that are factors.
#include <tuple>

#include "franca/cuda/streamed_clustering.hpp"
#include "python/bindings.hpp"

namespace franca::python {
namespace {

namespace py = pybind11;
// Features, prototypes, number of prototypes and scales of each head, rows, code of the dtype, and
// whether to multiply by warpgroups.
using Factors = std::tuple<Numbers, Numbers, Numbers, std::vector<Address>, int64_t, int, bool>;
// Head, first column and number of columns.
using Columns = std::tuple<int64_t, int64_t, int64_t>;

// A side as Python passes it, kept alive for the time of a call.
struct Side {
  explicit Side(const Factors& factors)
      : features(unpack_heads(std::get<0>(factors))),
        prototypes(unpack_heads(std::get<1>(factors))),
        n_prototypes(std::get<2>(factors)) {
    for (Address address : std::get<3>(factors)) scales.push_back(pointer<const float>(address));
    if (prototypes.size() != features.size() || n_prototypes.size() != features.size() ||
        scales.size() != features.size()) {
      throw std::invalid_argument("features, prototypes and scales: one of each per head");
    }
    view = {features.data(),
            prototypes.data(),
            n_prototypes.data(),
            scales.data(),
            static_cast<int64_t>(features.size()),
            std::get<4>(factors),
            static_cast<DType>(std::get<5>(factors)),
            std::get<6>(factors)};
  }
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

void prototype_scores(const Factors& factors, const Numbers& out, Address stream) {
  const Side side(factors);
  const std::vector<Head> heads = unpack_heads(out);
  if (heads.size() != side.features.size()) throw std::invalid_argument("out: one per head");
  cuda::prototype_scores(side.view, heads.data(), pointer<void>(stream));
}

std::size_t column_workspace(const Factors& factors, int64_t n_valid) {
  return cuda::streamed_column_workspace(Side(factors).view, n_valid);
}

void column_logsumexp(const Factors& factors, double temperature, int64_t n_valid, Address maximum,
                      Address total, Address workspace, std::size_t workspace_bytes,
                      Address stream) {
  const Side side(factors);
  cuda::streamed_column_logsumexp(side.view, temperature, n_valid, pointer<float>(maximum),
                                  pointer<float>(total), pointer<void>(workspace), workspace_bytes,
                                  pointer<void>(stream));
}

std::size_t row_step_workspace(const Factors& factors, int64_t n_valid) {
  return cuda::streamed_row_step_workspace(Side(factors).view, n_valid);
}

void row_step(const Factors& factors, double temperature, Address prototype, int64_t n_valid,
              Address row, Address mass, Address workspace, std::size_t workspace_bytes,
              Address stream) {
  const Side side(factors);
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

void gradient(const StreamedProblem& problem, const Columns& columns, Address grad_loss,
              Address lse, Address out, int64_t out_stride, Address scale_gradient,
              Address workspace, std::size_t workspace_bytes, Address stream) {
  const auto [head, first, count] = columns;
  cuda::streamed_gradient(problem.view, {head, first, count}, pointer<const float>(grad_loss),
                          pointer<const float>(lse), pointer<void>(out), out_stride,
                          pointer<float>(scale_gradient), pointer<void>(workspace), workspace_bytes,
                          pointer<void>(stream));
}

}  // namespace

void bind_cuda_streamed(py::module_& m) {
  py::class_<StreamedProblem>(m, "StreamedProblem")
      .def(py::init<const Factors&, const Factors&, Address, Address, double, double, Address,
                    int64_t, Address>());
  m.def("offers_warpgroups", &cuda::offers_warpgroups);
  m.def("prototype_scores", &prototype_scores);
  m.def("streamed_column_workspace", &column_workspace);
  m.def("streamed_column_logsumexp", &column_logsumexp);
  m.def("streamed_row_step_workspace", &row_step_workspace);
  m.def("streamed_row_step", &row_step);
  m.def("streamed_forward_workspace", &forward_workspace);
  m.def("streamed_forward", &forward);
  m.def("streamed_gradient_workspace", &cuda::streamed_gradient_workspace);
  m.def("streamed_gradient", &gradient);
}

}  // namespace franca::python
