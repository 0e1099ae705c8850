// Which instruction set the CPU kernels run with.
#pragma once

#include <string>
#include <vector>

namespace franca::cpu {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

// The sets that this build has and this machine runs, slowest first.
std::vector<Isa> available_isas();

// The set in use: the best available one, or the one that FRANCA_FAST_CPU_ISA names. Throws
// std::invalid_argument when that one is unknown or cannot run here.
Isa current_isa();

// Chooses another set for the whole process; throws like current_isa().
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace franca::cpu
