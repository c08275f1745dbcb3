// The cells of recurrent layers after their matrix products; what each stage computes stands in
// ops/recurrent_cell.h, and the formulas in ops/recurrent_cell_math.h, which run here on one element at a time.
//
// One kernel a direction and stage. A thread owns kVec neighbouring hidden units and walks down rows; the
// blocks are laid out by plan_columns (reduce.cuh). Double backward is backward, for the gradients of the
// inputs, and forward, for those of the incoming gradients, on dual numbers.
//
// All are bound by memory, in elements per unit and row: what is not null of at most
//
//              forward   backward   double backward
//   kLstm      11 + 2    13 +  9    22 + 11           read + written
//   kGru        8 + 1     9 +  7    16 +  8
//   kRnn        3 + 1     4 +  2     6 +  3
//   kReset      3 + 2     5 +  3     8 +  5
//   kBlend      4 + 1     5 +  3     8 +  4
//
// against some 100 (LSTM, forward) to 500 (double backward) operations, which a multiprocessor does in the time
// that those bytes take.
#include <cstdint>
#include <type_traits>

#include "../ops/recurrent_cell.h"
#include "../ops/recurrent_cell_math.h"
#include "cell_math.cuh"
#include "dispatch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

// Units of a thread. At most 4, though 8 halves would fit 16 bytes: with up to 22 arrays in flight a thread has
// bytes enough on the way, and the 13 inputs of an LSTM take 13 registers a unit. Dual numbers take twice that,
// and leave room for 2 (of float64 for 1).
template <typename scalar_t>
inline constexpr int kUnits = kVecSize<scalar_t> < 4 ? kVecSize<scalar_t> : 4;
template <typename scalar_t>
inline constexpr int kDualUnits = kUnits<scalar_t> / 2;

template <typename scalar_t, int kBlocks, int kVec>
struct Loaded {
  Vec<scalar_t, kVec> v[kBlocks];
};

template <typename scalar_t, int kCount>
struct Sources {
  const scalar_t* data[kCount];
  int64_t pitch[kCount];

  explicit Sources(const CellBlock* blocks) {
    for (int b = 0; b < kCount; ++b) {
      data[b] = static_cast<const scalar_t*>(blocks[b].data);
      pitch[b] = blocks[b].pitch;
    }
  }

  // Of the row's units from h on; zeros where there is no block.
  template <int kVec>
  __device__ __forceinline__ Loaded<scalar_t, kCount, kVec> load(int64_t row, int64_t h, bool aligned) const {
    Loaded<scalar_t, kCount, kVec> loaded{};
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      if (data[b] != nullptr) loaded.v[b] = load_vec<kVec>(data[b] + row * pitch[b] + h, aligned);
    }
    return loaded;
  }
};

template <typename scalar_t, int kCount>
struct Targets {
  scalar_t* data[kCount];
  int64_t pitch[kCount];

  explicit Targets(const CellOutputBlock* blocks) {
    for (int b = 0; b < kCount; ++b) {
      data[b] = static_cast<scalar_t*>(blocks[b].data);
      pitch[b] = blocks[b].pitch;
    }
  }

  template <int kVec>
  __device__ __forceinline__ void store(int64_t row, int64_t h, const Loaded<scalar_t, kCount, kVec>& values,
                                        bool aligned) const {
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      if (data[b] != nullptr) store_vec(data[b] + row * pitch[b] + h, values.v[b], aligned);
    }
  }
};

struct Shape {
  int64_t N, H;
  RecurrentCell cell;
  bool aligned;
};

// The stage's inputs of a thread's unit k, as numbers.
template <typename acc_t, int kCount, typename scalar_t, int kVec>
__device__ __forceinline__ void unpack(const Loaded<scalar_t, kCount, kVec>& loaded, int k,
                                       acc_t (&values)[kCount]) {
#pragma unroll
  for (int b = 0; b < kCount; ++b) values[b] = to_acc(loaded.v[b].v[k]);
}
template <typename acc_t, int kCount, typename scalar_t, int kVec>
__device__ __forceinline__ void pack(const acc_t (&values)[kCount], int k,
                                     Loaded<scalar_t, kCount, kVec>& packed) {
#pragma unroll
  for (int b = 0; b < kCount; ++b) packed.v[b].v[k] = from_acc<scalar_t>(values[b]);
}

// Calls f(row, unit) for all that the thread owns.
template <int kVec, typename F>
__device__ __forceinline__ void for_each_vector(const Shape& shape, const F& f) {
  const int64_t h = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVec;
  if (h >= shape.H) return;
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t n = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; n < shape.N; n += stride) {
    f(n, h);
  }
}

template <typename scalar_t, CellStage kStage>
using Formula = CellFormula<CellMath<acc_type<scalar_t>>, kStage>;
template <typename scalar_t, CellStage kStage>
using DualFormula = CellFormula<DualMath<CellMath<acc_type<scalar_t>>>, kStage>;

template <typename scalar_t, CellStage kStage>
struct ForwardArrays {
  using F = Formula<scalar_t, kStage>;
  Sources<scalar_t, F::kInputs> in;
  Targets<scalar_t, F::kOutputs> out;
};

template <typename scalar_t, CellStage kStage, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    recurrent_cell_forward_kernel(Shape shape, ForwardArrays<scalar_t, kStage> p) {
  using acc_t = acc_type<scalar_t>;
  using F = Formula<scalar_t, kStage>;
  for_each_vector<kVec>(shape, [&](int64_t n, int64_t h) {
    const auto in = p.in.template load<kVec>(n, h, shape.aligned);
    Loaded<scalar_t, F::kOutputs, kVec> out;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      acc_t values[F::kInputs], results[F::kOutputs];
      unpack(in, k, values);
      F::forward(shape.cell, values, results);
      pack(results, k, out);
    }
    p.out.store(n, h, out, shape.aligned);
  });
}

template <typename scalar_t, CellStage kStage>
struct BackwardArrays {
  using F = Formula<scalar_t, kStage>;
  Sources<scalar_t, F::kInputs> in;
  Sources<scalar_t, F::kOutputs> grad_out;
  Targets<scalar_t, F::kGrads> grad_in;
};

template <typename scalar_t, CellStage kStage, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    recurrent_cell_backward_kernel(Shape shape, BackwardArrays<scalar_t, kStage> p) {
  using acc_t = acc_type<scalar_t>;
  using F = Formula<scalar_t, kStage>;
  for_each_vector<kVec>(shape, [&](int64_t n, int64_t h) {
    const auto in = p.in.template load<kVec>(n, h, shape.aligned);
    const auto grad_out = p.grad_out.template load<kVec>(n, h, shape.aligned);
    Loaded<scalar_t, F::kGrads, kVec> grad_in;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      acc_t values[F::kInputs], grads[F::kOutputs], results[F::kGrads];
      unpack(in, k, values);
      unpack(grad_out, k, grads);
      F::backward(shape.cell, values, grads, results);
      pack(results, k, grad_in);
    }
    p.grad_in.store(n, h, grad_in, shape.aligned);
  });
}

template <typename scalar_t, CellStage kStage>
struct DoubleBackwardArrays {
  using F = Formula<scalar_t, kStage>;
  Sources<scalar_t, F::kInputs> in;
  Sources<scalar_t, F::kOutputs> grad_out;
  Sources<scalar_t, F::kGrads> direction;
  Targets<scalar_t, F::kOutputs> d_grad_out;
  Targets<scalar_t, F::kGrads> d_in;
};

template <typename scalar_t, CellStage kStage, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    recurrent_cell_double_backward_kernel(Shape shape, DoubleBackwardArrays<scalar_t, kStage> p) {
  using acc_t = acc_type<scalar_t>;
  using F = DualFormula<scalar_t, kStage>;
  for_each_vector<kVec>(shape, [&](int64_t n, int64_t h) {
    const auto in = p.in.template load<kVec>(n, h, shape.aligned);
    const auto grad_out = p.grad_out.template load<kVec>(n, h, shape.aligned);
    const auto direction = p.direction.template load<kVec>(n, h, shape.aligned);
    Loaded<scalar_t, F::kOutputs, kVec> d_grad_out;
    Loaded<scalar_t, F::kGrads, kVec> d_in;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      Dual<acc_t> values[F::kInputs], grads[F::kOutputs], tangents[F::kOutputs], results[F::kGrads];
#pragma unroll
      for (int b = 0; b < F::kInputs; ++b) {
        // The inputs after those that have gradients are zoneout's: constants.
        const acc_t along = b < F::kGrads ? to_acc(direction.v[b].v[k]) : acc_t(0);
        values[b] = {to_acc(in.v[b].v[k]), along};
      }
#pragma unroll
      for (int b = 0; b < F::kOutputs; ++b) grads[b] = {to_acc(grad_out.v[b].v[k]), acc_t(0)};
      F::forward(shape.cell, values, tangents);
      F::backward(shape.cell, values, grads, results);
#pragma unroll
      for (int b = 0; b < F::kOutputs; ++b) d_grad_out.v[b].v[k] = from_acc<scalar_t>(tangents[b].d);
#pragma unroll
      for (int b = 0; b < F::kGrads; ++b) d_in.v[b].v[k] = from_acc<scalar_t>(results[b].d);
    }
    p.d_grad_out.store(n, h, d_grad_out, shape.aligned);
    p.d_in.store(n, h, d_in, shape.aligned);
  });
}

// ---- launchers ----------------------------------------------------------------------------------------------

// Whether vectors can be moved whole in every row of these blocks.
template <typename scalar_t, int kVec, typename... Blocks>
bool rows_aligned(const Blocks&... blocks) {
  bool aligned = true;
  const auto look = [&](const auto& of) {
    for (const auto& block : of) {
      aligned = aligned && (block.data == nullptr ||
                            (all_aligned<scalar_t, kVec>({block.data}) && block.pitch % kVec == 0));
    }
  };
  (look(blocks), ...);
  return aligned;
}

// f(TypeTag<scalar_t>, stage, std::integral_constant<int, units of a thread>); no launch where nothing is.
template <template <typename> typename Units, typename F>
Status dispatch(const RecurrentCellInputs& in, const F& f) {
  return dispatch_dtype(in.dtype, [&](auto tag) {
    constexpr int kMost = Units<typename decltype(tag)::type>::value;
    return with_stage(in.stage, [&](auto stage) {
      if (in.H % kMost == 0) return f(tag, stage, std::integral_constant<int, kMost>{});
      return f(tag, stage, std::integral_constant<int, 1>{});
    });
  });
}

template <typename scalar_t>
using Units = std::integral_constant<int, kUnits<scalar_t>>;
template <typename scalar_t>
using DualUnits = std::integral_constant<int, kDualUnits<scalar_t>>;

template <typename Kernel, typename Arrays>
Status launch_cell(const char* name, Kernel kernel, const RecurrentCellInputs& in, int vec, bool aligned,
                   const Arrays& arrays, Stream stream) {
  if (in.N == 0 || in.H == 0) return Status::success();
  const ColumnPlan plan = plan_columns(in.H / vec, in.N, 1);
  return launch(name, kernel, plan.grid(), plan.block(), 0, stream, Shape{in.N, in.H, in.cell, aligned},
                arrays);
}

}  // namespace

Status recurrent_cell_forward(const RecurrentCellForwardParams& p, Stream stream) {
  return dispatch<Units>(p.in, [&](auto tag, auto stage, auto vec) {
    using scalar_t = typename decltype(tag)::type;
    constexpr CellStage kStage = decltype(stage)::value;
    constexpr int kVec = decltype(vec)::value;
    const ForwardArrays<scalar_t, kStage> arrays{decltype(arrays.in)(p.in.in), decltype(arrays.out)(p.out)};
    return launch_cell("recurrent_cell_forward", recurrent_cell_forward_kernel<scalar_t, kStage, kVec>, p.in,
                       kVec, rows_aligned<scalar_t, kVec>(p.in.in, p.out), arrays, stream);
  });
}

Status recurrent_cell_backward(const RecurrentCellBackwardParams& p, Stream stream) {
  return dispatch<Units>(p.in, [&](auto tag, auto stage, auto vec) {
    using scalar_t = typename decltype(tag)::type;
    constexpr CellStage kStage = decltype(stage)::value;
    constexpr int kVec = decltype(vec)::value;
    const BackwardArrays<scalar_t, kStage> arrays{decltype(arrays.in)(p.in.in),
                                                  decltype(arrays.grad_out)(p.grad_out),
                                                  decltype(arrays.grad_in)(p.grad_in)};
    return launch_cell("recurrent_cell_backward", recurrent_cell_backward_kernel<scalar_t, kStage, kVec>, p.in,
                       kVec, rows_aligned<scalar_t, kVec>(p.in.in, p.grad_out, p.grad_in), arrays, stream);
  });
}

Status recurrent_cell_double_backward(const RecurrentCellDoubleBackwardParams& p, Stream stream) {
  return dispatch<DualUnits>(p.in, [&](auto tag, auto stage, auto vec) {
    using scalar_t = typename decltype(tag)::type;
    constexpr CellStage kStage = decltype(stage)::value;
    constexpr int kVec = decltype(vec)::value;
    const DoubleBackwardArrays<scalar_t, kStage> arrays{
        decltype(arrays.in)(p.in.in), decltype(arrays.grad_out)(p.grad_out),
        decltype(arrays.direction)(p.direction), decltype(arrays.d_grad_out)(p.d_grad_out),
        decltype(arrays.d_in)(p.d_in)};
    return launch_cell("recurrent_cell_double_backward",
                       recurrent_cell_double_backward_kernel<scalar_t, kStage, kVec>, p.in, kVec,
                       rows_aligned<scalar_t, kVec>(p.in.in, p.grad_out, p.direction, p.d_grad_out, p.d_in),
                       arrays, stream);
  });
}

}  // namespace fastnn::cuda
