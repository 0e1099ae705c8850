#include "franca/clustering_cross_entropy.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/row_sums.hpp"
#include "cpu/tile_kernels.hpp"
#include "cpu/tiles.hpp"

namespace franca::cpu {
namespace {

// Student rows with the same teacher rows share their targets, up to this many at a time.
constexpr int64_t kMaxRowsPerUnit = 16;
// Student logits in one task, at least.
constexpr int64_t kTaskElements = 1 << 14;

// Student rows in an order that puts those with the same teacher rows beside each other.
struct Units {
  explicit Units(const ClusteringProblem& problem) : order(problem.student.n_rows) {
    const int64_t n_targets = problem.n_targets;
    const int64_t* rows = problem.teacher_rows;
    const auto compare = [=](int64_t a, int64_t b) {
      return std::lexicographical_compare(rows + a * n_targets, rows + (a + 1) * n_targets,
                                          rows + b * n_targets, rows + (b + 1) * n_targets);
    };
    std::iota(order.begin(), order.end(), int64_t{0});
    if (!std::is_sorted(order.begin(), order.end(), compare)) {
      std::stable_sort(order.begin(), order.end(), compare);
    }
    for (int64_t i = 0; i < static_cast<int64_t>(order.size()); ++i) {
      const bool same = i > 0 && !compare(order[i - 1], order[i]);
      if (!same || i - starts.back() == kMaxRowsPerUnit) starts.push_back(i);
    }
    starts.push_back(static_cast<int64_t>(order.size()));
  }

  int64_t size() const { return static_cast<int64_t>(starts.size()) - 1; }

  std::vector<int64_t> order;
  std::vector<int64_t> starts;  // of each unit in `order`, and the end of the last
};

// Calls visit(head, rows, n_rows) for every head and unit, in parallel.
template <class Visit>
void for_units(const ClusteringProblem& problem, const Units& units, int threads,
               const Visit& visit) {
  struct Task {
    int64_t head, begin, end;
  };
  const int64_t n_rows = problem.student.n_rows;
  if (n_rows == 0) return;
  std::vector<Task> tasks;
  // The widest head comes last by custom and first here: what is left at the end should be small.
  for (int64_t head = problem.student.n_heads - 1; head >= 0; --head) {
    const int64_t elements = n_rows * problem.student.heads[head].columns;
    const int64_t most = std::min<int64_t>(units.size(), 8 * threads);
    const int64_t n_tasks =
        std::clamp<int64_t>(elements / kTaskElements, 1, std::max<int64_t>(most, 1));
    for (int64_t i = 0; i < n_tasks; ++i) {
      tasks.push_back({head, units.size() * i / n_tasks, units.size() * (i + 1) / n_tasks});
    }
  }
  const int64_t elements = n_rows * total_columns(problem.student);
  run_tasks(static_cast<int64_t>(tasks.size()), useful_threads(threads, elements), [&](int64_t i) {
    for (int64_t unit = tasks[i].begin; unit < tasks[i].end; ++unit) {
      const int64_t start = units.starts[unit];
      visit(tasks[i].head, units.order.data() + start, units.starts[unit + 1] - start);
    }
  });
}

// Targets of one tile for one student row (and all others with the same teacher rows).
void targets_of(const ClusteringProblem& problem, const Tile& tile, Scale scale, int64_t m,
                const TileKernels& kernels, float* q) {
  const int dtype = static_cast<int>(problem.teacher.dtype);
  const float* potentials = problem.row + tile.head * problem.teacher.n_rows;
  for (int64_t p = 0; p < problem.n_targets; ++p) {
    const int64_t n = problem.teacher_rows[m * problem.n_targets + p];
    const void* z = tile_row(problem.teacher, tile, n);
    const float* prototype = problem.prototype + tile.offset;
    if (p == 0) {
      kernels.write_exp[dtype](z, tile.columns, scale, prototype, -potentials[n], q);
    } else {
      kernels.add_exp[dtype](z, tile.columns, scale, prototype, -potentials[n], 1.0f, q);
    }
  }
  if (problem.n_targets == 0) std::fill_n(q, tile.columns, 0.0f);
}

// What is known of a student row: the sum of its exponentials and its agreement with its targets.
struct StudentRow {
  RowSum exponentials;
  double agreement = 0.0;
};

void add_student_tile(const ClusteringProblem& problem, const Tile& tile, Scale scale, int64_t m,
                      const float* q, const TileKernels& kernels, StudentRow* row) {
  const int dtype = static_cast<int>(problem.student.dtype);
  const void* x = tile_row(problem.student, tile, m);
  float shift = 0.0f;
  StudentSums sums = kernels.student_sums[dtype](x, tile.columns, scale, shift, q);
  if (needs_shift(sums.total)) {
    shift = safe_shift(kernels.maximum[dtype](x, tile.columns, scale, nullptr));
    sums = kernels.student_sums[dtype](x, tile.columns, scale, shift, q);
  }
  row->exponentials.add({shift, sums.total});
  row->agreement += sums.agreement;
}

void check(const ClusteringProblem& problem) {
  const RaggedLogits& student = problem.student;
  const RaggedLogits& teacher = problem.teacher;
  check_logits(student, "student");
  check_logits(teacher, "teacher");
  check_temperature(problem.student_temperature, "student_temperature");
  check_temperature(problem.teacher_temperature, "teacher_temperature");
  if (student.n_heads != teacher.n_heads) {
    throw std::invalid_argument("student has " + std::to_string(student.n_heads) +
                                " heads, teacher has " + std::to_string(teacher.n_heads));
  }
  for (int64_t head = 0; head < student.n_heads; ++head) {
    if (student.heads[head].columns != teacher.heads[head].columns) {
      throw std::invalid_argument("head " + std::to_string(head) + ": student has " +
                                  std::to_string(student.heads[head].columns) +
                                  " prototypes, teacher has " +
                                  std::to_string(teacher.heads[head].columns));
    }
  }
  if (problem.n_targets < 0) throw std::invalid_argument("teacher_rows: negative size");
  const int64_t n_rows = student.n_rows * problem.n_targets;
  check_pointer(problem.prototype, total_columns(student), "prototype");
  check_pointer(problem.row, teacher.n_heads * teacher.n_rows, "row");
  check_pointer(problem.weights, student.n_rows, "weights");
  check_pointer(problem.teacher_rows, n_rows, "teacher_rows");
  for (int64_t i = 0; i < n_rows; ++i) {
    const int64_t n = problem.teacher_rows[i];
    if (n < 0 || n >= teacher.n_rows) {
      throw std::invalid_argument("teacher_rows holds " + std::to_string(n) +
                                  ", but the teacher has " + std::to_string(teacher.n_rows) +
                                  " rows");
    }
  }
}

}  // namespace

std::size_t clustering_forward_workspace(int64_t n_heads, int64_t n_student_rows) {
  if (n_heads < 0 || n_student_rows < 0) throw std::invalid_argument("student: negative size");
  return static_cast<std::size_t>(n_heads * n_student_rows) * sizeof(double);
}

void clustering_forward(const ClusteringProblem& problem, float* loss, float* lse, void* workspace,
                        std::size_t workspace_bytes, int threads) {
  check(problem);
  const int64_t n_heads = problem.student.n_heads;
  const int64_t n_rows = problem.student.n_rows;
  check_pointer(loss, n_heads, "loss");
  check_pointer(lse, n_heads * n_rows, "lse");
  check_workspace(workspace_bytes, clustering_forward_workspace(n_heads, n_rows), workspace);

  const Tiling tiling(problem.student);
  const TileKernels& kernels = tile_kernels();
  const Scale student_scale(problem.student_temperature);
  const Scale teacher_scale(problem.teacher_temperature);
  double* row_loss = static_cast<double*>(workspace);
  for_units(problem, Units(problem), threads, [&](int64_t head, const int64_t* rows, int64_t n) {
    StudentRow students[kMaxRowsPerUnit];
    float q[kTileColumns];
    for (const Tile* tile = tiling.begin(head); tile != tiling.end(head); ++tile) {
      targets_of(problem, *tile, teacher_scale, rows[0], kernels, q);
      for (int64_t i = 0; i < n; ++i) {
        add_student_tile(problem, *tile, student_scale, rows[i], q, kernels, &students[i]);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      const double row_lse = students[i].exponentials.logsumexp();
      const double agreement = students[i].agreement / problem.student_temperature;
      const double n_targets = static_cast<double>(problem.n_targets);
      lse[head * n_rows + rows[i]] = static_cast<float>(row_lse);
      row_loss[head * n_rows + rows[i]] =
          problem.weights[rows[i]] * (n_targets * row_lse - agreement);
    }
  });
  for (int64_t head = 0; head < n_heads; ++head) {
    const double* begin = row_loss + head * n_rows;
    loss[head] = static_cast<float>(std::accumulate(begin, begin + n_rows, 0.0));
  }
}

void clustering_backward(const ClusteringProblem& problem, const float* grad_loss, const float* lse,
                         const Head* gradient, int threads) {
  check(problem);
  const int64_t n_heads = problem.student.n_heads;
  const int64_t n_rows = problem.student.n_rows;
  check_pointer(grad_loss, n_heads, "grad_loss");
  check_pointer(lse, n_heads * n_rows, "lse");
  const DType dtype = problem.student.dtype;
  const RaggedLogits gradients{gradient, n_heads, n_rows, dtype};
  check_logits(gradients, "gradient");
  for (int64_t head = 0; head < n_heads; ++head) {
    if (gradient[head].columns != problem.student.heads[head].columns) {
      throw std::invalid_argument("gradient: its sizes differ from those of the student");
    }
  }

  const Tiling tiling(problem.student);
  const TileKernels& kernels = tile_kernels();
  const Scale student_scale(problem.student_temperature);
  const Scale teacher_scale(problem.teacher_temperature);
  for_units(problem, Units(problem), threads, [&](int64_t head, const int64_t* rows, int64_t n) {
    float q[kTileColumns];
    for (const Tile* tile = tiling.begin(head); tile != tiling.end(head); ++tile) {
      targets_of(problem, *tile, teacher_scale, rows[0], kernels, q);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t m = rows[i];
        const double factor =
            static_cast<double>(grad_loss[head]) * problem.weights[m] / problem.student_temperature;
        void* target = const_cast<void*>(tile_row(gradients, *tile, m));
        kernels.student_gradient[static_cast<int>(dtype)](
            tile_row(problem.student, *tile, m), tile->columns, student_scale,
            lse[head * n_rows + m], static_cast<float>(factor * problem.n_targets),
            static_cast<float>(factor), q, target);
      }
    }
  });
}

}  // namespace franca::cpu
