// Large fresh memory, with fewer page faults.
#pragma once

#include <cstddef>

namespace franca::cpu {

// Asks the operating system for huge pages in memory that nobody has touched yet. Writing to new
// memory for the first time costs more than most kernels' work, and less so in huge pages. A hint:
// where it is not understood, nothing happens.
void prefer_huge_pages(void* data, std::size_t bytes);

}  // namespace franca::cpu
