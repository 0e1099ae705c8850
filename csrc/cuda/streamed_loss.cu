#include "cuda/streamed_loss.cuh"

#include "cuda/merges.cuh"
#include "cuda/score_launch.cuh"

namespace franca::cuda {
namespace {

// scale_gradient[k] = the sum of scale_partial[row tile, k].
__global__ void __launch_bounds__(kThreads)
    sum_scale_gradients_kernel(int64_t n_columns, int64_t n_parts, const float* partial,
                               float* out) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= n_columns) return;
  float sum = 0.0f;
  for (int64_t part = 0; part < n_parts; ++part) sum += partial[part * n_columns + k];
  out[k] = sum;
}

template <class Form>
PlannedTiles plan_loss(const StreamedLoss& p, std::size_t more_memory) {
  return plan_tiles<Form>({p.n_targets + 1, most_steps(p.teacher, p.scores),
                           most_steps(p.student, p.scores), sizeof(LossTables) + more_memory, 1});
}

StreamedLoss loss_of(const StreamedProblem& problem) {
  StreamedLoss p{};
  static_cast<LossParameters&>(p) = loss_parameters(problem);
  p.student = factors_of(problem.student);
  p.teacher = factors_of(problem.teacher);
  p.scores = scores_of(problem.student);
  p.student_unit = base2(problem.student_temperature);
  p.teacher_unit = base2(problem.teacher_temperature);
  bool same = problem.student.n_heads == problem.teacher.n_heads &&
              problem.student.dtype == problem.teacher.dtype;
  for (int64_t h = 0; same && h < problem.student.n_heads; ++h) {
    same = problem.student.n_prototypes[h] == problem.teacher.n_prototypes[h];
  }
  if (!same) throw std::invalid_argument("student and teacher differ in heads or type");
  return p;
}

// Column tiles for each block, one block on a multiprocessor, such that all end at about the same
// time. What a block costs before its first tile is taken for a tile.
int tiles_of_block(int64_t n_row_tiles, int64_t n_tiles) {
  int best = 1;
  int64_t least = INT64_MAX;
  for (int tiles = 1; tiles <= 2 * kTilesPerSlice; ++tiles) {
    const int64_t blocks = n_row_tiles * divide_up(n_tiles, tiles);
    const int64_t time = divide_up(blocks, multiprocessors()) * (tiles + 1);
    if (time < least) {
      least = time;
      best = tiles;
    }
  }
  return best;
}

}  // namespace

std::size_t streamed_forward_workspace(const StreamedProblem& problem) {
  Workspace memory(nullptr, 0);
  loss_memory(memory, scores_of(problem.student));
  return memory.used();
}

void streamed_forward(const StreamedProblem& problem, float* loss, float* lse, void* workspace,
                      std::size_t workspace_bytes, void* stream) {
  const StreamedLoss p = loss_of(problem);
  Workspace memory(workspace, workspace_bytes);
  const LossMemory temporary = loss_memory(memory, p.scores);
  if (p.scores.n_rows > 0) {
    with_kernel_types(problem.student, [&](auto* type, auto form) {
      using T = std::remove_pointer_t<decltype(type)>;
      using Form = decltype(form);
      const PlannedTiles planned = plan_loss<Form>(p, kMergeBytes<typename Form::Tile>);
      launch(streamed_forward_kernel<T, Form>,
             {grid_of(row_tiles(p.scores.n_rows), p.scores.n_slices), kThreads, planned.bytes},
             stream, p, planned.plan, static_cast<float>(problem.student_temperature),
             temporary.partial);
    });
  }
  merge_losses(p.scores, p.student_scale, p.n_targets, p.weights, temporary.partial, lse,
               temporary.value, loss, stream);
}

std::size_t streamed_gradient_workspace(int64_t n_rows, int64_t columns) {
  Workspace memory(nullptr, 0);
  if (row_tiles(n_rows) > 1) memory.take<float>(row_tiles(n_rows) * columns);
  return memory.used();
}

void streamed_gradient(const StreamedProblem& problem, const ColumnsOfHead& part,
                       const float* grad_loss, const float* lse, void* out, int64_t out_stride,
                       float* scale_gradient, void* workspace, std::size_t workspace_bytes,
                       void* stream) {
  const StreamedLoss p = loss_of(problem);
  const int64_t n_parts = row_tiles(p.scores.n_rows), n_tiles = row_tiles(part.columns);
  if (part.head < 0 || part.head >= p.scores.n_heads || part.first < 0 || part.columns < 1 ||
      part.first + part.columns > p.scores.head[part.head].columns) {
    throw std::invalid_argument("columns that no head has");
  }
  if (n_parts == 0) throw std::invalid_argument("the gradient of no rows");
  Workspace memory(workspace, workspace_bytes);
  float* partial = n_parts > 1 ? memory.take<float>(n_parts * part.columns) : scale_gradient;
  const Head stored{out, part.columns, out_stride};
  const bool vectors = make_matrix(stored, problem.student.dtype).vectors;
  const ColumnRange range{static_cast<int>(part.head), tiles_of_block(n_parts, n_tiles), part.first,
                          part.columns};
  with_kernel_types(problem.student, [&](auto* type, auto form) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Form = decltype(form);
    const PlannedTiles planned = plan_loss<Form>(
        p, kTileRows * sizeof(float2) + Form::Tile::kWarpsDown * kTileColumns * sizeof(float));
    const dim3 grid = grid_of(n_parts, divide_up(n_tiles, range.tiles_of_block));
    launch(streamed_gradient_kernel<T, Form>, {grid, kThreads, planned.bytes}, stream, p,
           planned.plan, range, grad_loss, lse + part.head * p.scores.n_rows,
           GradientOutputs<T>{static_cast<T*>(out), out_stride, vectors, partial});
  });
  if (n_parts == 1) return;
  launch(sum_scale_gradients_kernel, {grid_of(divide_up(part.columns, kThreads)), kThreads}, stream,
         part.columns, n_parts, static_cast<const float*>(partial), scale_gradient);
}

}  // namespace franca::cuda
