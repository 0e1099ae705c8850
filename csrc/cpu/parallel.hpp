// Threads. With OpenMP they are the ones that torch uses, so a kernel between two torch operators
// finds them awake, and need not fight them for the cores while they wait for the next operator (a
// pool of our own was tried: up to twice as slow between torch operators on 2 cores). Without
// OpenMP everything runs on the caller's thread.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace franca::cpu {

// Calls task(i, worker) for i = 0 ... n_tasks - 1, each once, in any order and on up to `threads`
// threads, numbered from 0. Whoever is free takes the next one, and nobody waits for anybody before
// the end: on a machine that others use too, equal shares do not take equal time. Tasks must not
// throw.
template <class Task>
void run_on_workers(int64_t n_tasks, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int worker) {
    for (int64_t i = next.fetch_add(1); i < n_tasks; i = next.fetch_add(1)) task(i, worker);
  };
#if defined(_OPENMP)
  const int useful = static_cast<int>(std::min<int64_t>(threads, n_tasks));
  if (useful > 1) {
#pragma omp parallel num_threads(useful)
    work(omp_get_thread_num());
    return;
  }
#else
  (void)threads;
#endif
  work(0);
}

// The same for tasks that need no memory of their thread's own.
template <class Task>
void run_tasks(int64_t n_tasks, int threads, const Task& task) {
  run_on_workers(n_tasks, threads, [&](int64_t i, int) { task(i); });
}

// Fewer threads for work that is done before another thread has woken up.
inline int useful_threads(int threads, int64_t n_elements) {
  constexpr int64_t kElementsPerThread = 1 << 15;
  return static_cast<int>(
      std::clamp<int64_t>(n_elements / kElementsPerThread, 1, std::max(threads, 1)));
}

}  // namespace franca::cpu
