#include "franca/isa.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace franca::cpu {
namespace {

constexpr int kUndecided = -1;
std::atomic<int> chosen{kUndecided};

bool runs(Isa isa) {
  switch (isa) {
#if defined(FRANCA_X86_KERNELS)
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx2:
      // F16C has no name of its own in older compilers; every CPU with AVX2 has it.
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    case Isa::portable:
      return true;
    default:
      return false;
  }
}

Isa parse(const std::string& name) {
  std::string known;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += known.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("CPU instruction set '" + name +
                              "' is unknown or cannot run here; accepted: " + known);
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (runs(isa)) isas.push_back(isa);
  }
  return isas;
}

Isa current_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa == kUndecided) {
    const char* request = std::getenv("FRANCA_FAST_CPU_ISA");
    const bool asked = request != nullptr && *request != '\0';
    isa = static_cast<int>(asked ? parse(request) : available_isas().back());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const std::string& name) {
  chosen.store(static_cast<int>(parse(name)));
}

}  // namespace franca::cpu
