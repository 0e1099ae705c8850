// The Python module franca_fast._C: the torch-free core, called with addresses and sizes.
#include <string>

#include "franca/huge_pages.hpp"
#include "franca/isa.hpp"
#include "python/bindings.hpp"

namespace py = pybind11;

namespace {

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (franca::cpu::Isa isa : franca::cpu::available_isas()) {
    names.emplace_back(franca::cpu::isa_name(isa));
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of franca_fast";
#if defined(FRANCA_CUDA)
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
#if defined(_OPENMP)
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
  m.def("cpu_isas", &cpu_isas, "Instruction sets that can run here, slowest first.");
  m.def(
      "cpu_isa", [] { return franca::cpu::isa_name(franca::cpu::current_isa()); },
      "Instruction set in use.");
  m.def("set_cpu_isa", &franca::cpu::set_isa, "Chooses an instruction set by name.");
  m.def("prefer_huge_pages", [](franca::python::Address data, std::size_t bytes) {
    franca::cpu::prefer_huge_pages(franca::python::pointer<void>(data), bytes);
  });
  franca::python::bind_sinkhorn(m);
  franca::python::bind_clustering_cross_entropy(m);
  franca::python::bind_varlen_attention(m);
  franca::python::bind_weight_norm(m);
  franca::python::bind_adamw_update(m);
  franca::python::bind_swiglu(m);
#if defined(FRANCA_CUDA)
  franca::python::bind_cuda(m);
#endif
}
