// The LSTM cell after its matrix products; the formulas stand in ops/lstm_cell.h and ops/lstm_cell_math.h.
//
// One kernel a direction. A thread owns kVec neighbouring hidden units, whose biases stay in its registers, and
// walks down rows; the blocks are laid out by plan_columns (reduce.cuh). All are bound by memory, in elements
// per unit and row:
//
//   forward          reads 4 gates, cx; writes hy, cy                                             (7)
//   backward         reads those and 2 gradients; writes 4 gate gradients, grad_cx               (12)
//   double backward  reads those, 4 + 1 directions; writes d_grad_hy, d_grad_cy, 4 d_gates, d_cx (19)
//
// The bias gradient is the column sum of the gate gradients: since a thread stays in its columns, the sum is
// kept in registers while the rows go by, taken in the accumulation type before the gate gradients are rounded
// to theirs, and costs no second pass. Blocks that share columns leave partial sums, which combine_partials
// adds.
#include <cstdint>
#include <type_traits>

#include "../ops/lstm_cell.h"
#include "../ops/lstm_cell_math.h"
#include "cell_math.cuh"
#include "dispatch.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kGates = 4;  // i, f, g, o

// Not more than 4, though 8 halves would fit 16 bytes: biases, directions and bias sums take 12 registers a
// unit, and with up to 19 streams in flight a thread has bytes enough on the way.
template <typename scalar_t>
constexpr int kUnits = kVecSize<scalar_t> < 4 ? kVecSize<scalar_t> : 4;

template <typename scalar_t>
using BiasSums = Sums<acc_type<scalar_t>, kGates>;

template <typename acc_t, int kVec>
struct GateVecs {
  acc_t v[kGates][kVec];
};

template <int kVec, typename scalar_t>
__device__ __forceinline__ Vec<scalar_t, kVec> load_or_zero(const scalar_t* p, int64_t i, bool aligned) {
  if (p == nullptr) return {};
  return load_vec<kVec>(p + i, aligned);
}

// Adds the four blocks of a row [4H], from unit h on; nothing where p is null.
template <typename scalar_t, typename acc_t, int kVec>
__device__ __forceinline__ void add_gates(GateVecs<acc_t, kVec>& sum, const scalar_t* p, int64_t H, int64_t h,
                                          bool aligned) {
  if (p == nullptr) return;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    const auto raw = load_vec<kVec>(p + gate * H + h, aligned);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum.v[gate][k] += to_acc(raw.v[k]);
  }
}

template <typename scalar_t>
struct Cells {
  using acc_t = acc_type<scalar_t>;
  int64_t N, H;
  const scalar_t* gates;
  const scalar_t* bias_ih;
  const scalar_t* bias_hh;
  const scalar_t* cx;

  explicit Cells(const LstmCellInputs& in)
      : N(in.N),
        H(in.H),
        gates(static_cast<const scalar_t*>(in.gates)),
        bias_ih(static_cast<const scalar_t*>(in.bias_ih)),
        bias_hh(static_cast<const scalar_t*>(in.bias_hh)),
        cx(static_cast<const scalar_t*>(in.cx)) {}

  template <int kVec>
  __device__ __forceinline__ GateVecs<acc_t, kVec> bias(int64_t h, bool aligned) const {
    GateVecs<acc_t, kVec> sum{};
    add_gates(sum, bias_ih, H, h, aligned);
    add_gates(sum, bias_hh, H, h, aligned);
    return sum;
  }
};

// The cell's values from its pre-activations, and its new state.
template <typename acc_t, int kVec>
__device__ __forceinline__ LstmCellValues<acc_t> activate(const GateVecs<acc_t, kVec>& a, int k, acc_t cx,
                                                          acc_t& cy) {
  using M = CellMath<acc_t>;
  LstmCellValues<acc_t> v;
  v.i = M::sigmoid(a.v[0][k]);
  v.f = M::sigmoid(a.v[1][k]);
  v.g = M::tanh(a.v[2][k]);
  v.o = M::sigmoid(a.v[3][k]);
  v.cx = cx;
  cy = v.f * cx + v.i * v.g;
  v.tanh_cy = M::tanh(cy);
  return v;
}

// The gradients of one row's four blocks: rounded and stored (where wanted), and summed.
template <typename scalar_t, int kVec>
struct GateGradients {
  using acc_t = acc_type<scalar_t>;
  Vec<scalar_t, kVec> rounded[kGates];

  __device__ __forceinline__ void set(int k, const LstmCellGrads<acc_t>& a, Sums<acc_t, kGates>& sums) {
    const acc_t values[kGates] = {a.i, a.f, a.g, a.o};
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      rounded[gate].v[k] = from_acc<scalar_t>(values[gate]);
      sums.v[gate] += values[gate];
    }
  }

  __device__ __forceinline__ void store(scalar_t* p, int64_t H, bool aligned) const {
    if (p == nullptr) return;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) store_vec(p + gate * H, rounded[gate], aligned);
  }
};

template <typename scalar_t>
struct StoreBiasGradient {
  using acc_t = acc_type<scalar_t>;
  scalar_t* grad_bias;
  int64_t H;

  __device__ __forceinline__ void operator()(int64_t h, const Sums<acc_t, kGates>& sums) const {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) grad_bias[gate * H + h] = from_acc<scalar_t>(sums.v[gate]);
  }
};

__device__ __forceinline__ int64_t first_unit(int vec) {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * vec;
}
__device__ __forceinline__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
}
__device__ __forceinline__ int64_t row_stride() { return static_cast<int64_t>(gridDim.y) * blockDim.y; }

template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    lstm_cell_forward_kernel(Cells<scalar_t> cells, scalar_t* hy, scalar_t* cy, bool aligned) {
  using acc_t = acc_type<scalar_t>;
  const int64_t H = cells.H, h = first_unit(kVec);
  if (h >= H) return;
  const auto bias = cells.template bias<kVec>(h, aligned);
  for (int64_t n = first_row(); n < cells.N; n += row_stride()) {
    GateVecs<acc_t, kVec> a = bias;
    add_gates(a, cells.gates + n * kGates * H, H, h, aligned);
    const auto cx = load_vec<kVec>(cells.cx + n * H + h, aligned);
    Vec<scalar_t, kVec> hy_vec, cy_vec;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      acc_t state;
      const auto v = activate(a, k, to_acc(cx.v[k]), state);
      cy_vec.v[k] = from_acc<scalar_t>(state);
      hy_vec.v[k] = from_acc<scalar_t>(v.o * v.tanh_cy);
    }
    store_vec(hy + n * H + h, hy_vec, aligned);
    store_vec(cy + n * H + h, cy_vec, aligned);
  }
}

template <typename scalar_t>
struct BackwardArrays {
  const scalar_t* grad_hy;
  const scalar_t* grad_cy;
  scalar_t* grad_gates;
  scalar_t* grad_cx;
};

template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    lstm_cell_backward_kernel(Cells<scalar_t> cells, BackwardArrays<scalar_t> p,
                              StoreBiasGradient<scalar_t> finish, bool aligned,
                              ColumnArrays<BiasSums<scalar_t>> partials) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(BiasSums<scalar_t>, scratch, kColumnThreads);
  const int64_t H = cells.H, h = first_unit(kVec);
  Sums<acc_t, kGates> sums[kVec]{};
  if (h < H) {
    const auto bias = cells.template bias<kVec>(h, aligned);
    for (int64_t n = first_row(); n < cells.N; n += row_stride()) {
      const int64_t at = n * H + h;
      GateVecs<acc_t, kVec> a = bias;
      add_gates(a, cells.gates + n * kGates * H, H, h, aligned);
      const auto cx = load_vec<kVec>(cells.cx + at, aligned);
      const auto grad_hy = load_or_zero<kVec>(p.grad_hy, at, aligned);
      const auto grad_cy = load_or_zero<kVec>(p.grad_cy, at, aligned);
      GateGradients<scalar_t, kVec> gates;
      Vec<scalar_t, kVec> grad_cx;
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        acc_t state;
        const auto v = activate(a, k, to_acc(cx.v[k]), state);
        const auto g = lstm_cell_backward_values<acc_t>(v, to_acc(grad_hy.v[k]), to_acc(grad_cy.v[k]));
        gates.set(k, g, sums[k]);
        grad_cx.v[k] = from_acc<scalar_t>(g.cx);
      }
      gates.store(p.grad_gates + n * kGates * H + h, H, aligned);
      if (p.grad_cx != nullptr) store_vec(p.grad_cx + at, grad_cx, aligned);
    }
  }
  if (finish.grad_bias != nullptr) finish_columns(sums, scratch, finish, partials, H);
}

template <typename scalar_t>
struct DoubleBackwardArrays {
  const scalar_t* gg_gates;
  const scalar_t* gg_cx;
  const scalar_t* gg_bias;
  const scalar_t* grad_hy;
  const scalar_t* grad_cy;
  scalar_t* d_grad_hy;
  scalar_t* d_grad_cy;
  scalar_t* d_gates;
  scalar_t* d_cx;
};

template <typename scalar_t, int kVec>
__global__ void __launch_bounds__(kColumnThreads, 1)
    lstm_cell_double_backward_kernel(Cells<scalar_t> cells, DoubleBackwardArrays<scalar_t> p,
                                     StoreBiasGradient<scalar_t> finish, bool aligned,
                                     ColumnArrays<BiasSums<scalar_t>> partials) {
  using acc_t = acc_type<scalar_t>;
  FASTNN_SHARED(BiasSums<scalar_t>, scratch, kColumnThreads);
  const int64_t H = cells.H, h = first_unit(kVec);
  Sums<acc_t, kGates> sums[kVec]{};
  if (h < H) {
    const auto bias = cells.template bias<kVec>(h, aligned);
    GateVecs<acc_t, kVec> gg_bias{};
    add_gates(gg_bias, p.gg_bias, H, h, aligned);
    for (int64_t n = first_row(); n < cells.N; n += row_stride()) {
      const int64_t at = n * H + h;
      GateVecs<acc_t, kVec> a = bias;
      add_gates(a, cells.gates + n * kGates * H, H, h, aligned);
      // The bias is added to the gates of every row, so its direction adds to theirs.
      GateVecs<acc_t, kVec> u = gg_bias;
      add_gates(u, p.gg_gates != nullptr ? p.gg_gates + n * kGates * H : nullptr, H, h, aligned);
      const auto cx = load_vec<kVec>(cells.cx + at, aligned);
      const auto gg_cx = load_or_zero<kVec>(p.gg_cx, at, aligned);
      const auto grad_hy = load_or_zero<kVec>(p.grad_hy, at, aligned);
      const auto grad_cy = load_or_zero<kVec>(p.grad_cy, at, aligned);
      GateGradients<scalar_t, kVec> gates;
      Vec<scalar_t, kVec> d_grad_hy, d_grad_cy, d_cx;
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        acc_t state;
        const auto v = activate(a, k, to_acc(cx.v[k]), state);
        const LstmCellGrads<acc_t> direction{u.v[0][k], u.v[1][k], u.v[2][k], u.v[3][k], to_acc(gg_cx.v[k])};
        const auto d =
            lstm_cell_double_backward_values<acc_t>(v, to_acc(grad_hy.v[k]), to_acc(grad_cy.v[k]), direction);
        gates.set(k, d.a, sums[k]);
        d_grad_hy.v[k] = from_acc<scalar_t>(d.grad_hy);
        d_grad_cy.v[k] = from_acc<scalar_t>(d.grad_cy);
        d_cx.v[k] = from_acc<scalar_t>(d.a.cx);
      }
      gates.store(p.d_gates != nullptr ? p.d_gates + n * kGates * H + h : nullptr, H, aligned);
      if (p.d_grad_hy != nullptr) store_vec(p.d_grad_hy + at, d_grad_hy, aligned);
      if (p.d_grad_cy != nullptr) store_vec(p.d_grad_cy + at, d_grad_cy, aligned);
      if (p.d_cx != nullptr) store_vec(p.d_cx + at, d_cx, aligned);
    }
  }
  if (finish.grad_bias != nullptr) finish_columns(sums, scratch, finish, partials, H);
}

// ---- launchers ----------------------------------------------------------------------------------------------

// Calls f(std::integral_constant<int, kVec>{}) with the units that a thread owns.
template <typename scalar_t, typename F>
Status dispatch_units(int64_t H, F&& f) {
  if (H % kUnits<scalar_t> == 0) return f(std::integral_constant<int, kUnits<scalar_t>>{});
  return f(std::integral_constant<int, 1>{});
}

ColumnPlan plan_cells(const LstmCellInputs& in, int vec) { return plan_columns(in.H / vec, in.N, 1); }

template <typename scalar_t, int kVec>
bool inputs_aligned(const LstmCellInputs& in) {
  return all_aligned<scalar_t, kVec>({in.gates, in.bias_ih, in.bias_hh, in.cx});
}

// Adds the partial sums that several blocks have left of the same columns.
template <typename scalar_t>
Status combine_bias_gradient(const char* name, const StoreBiasGradient<scalar_t>& finish,
                             const ColumnArrays<BiasSums<scalar_t>>& partials, const ColumnPlan& plan,
                             Stream stream) {
  if (finish.grad_bias == nullptr || plan.splits == 1) return Status::success();
  return combine_partials(name, finish, partials, plan.splits, finish.H, stream);
}

int64_t bias_gradient_workspace(const LstmCellInputs& in) {
  int64_t bytes = 0;
  dispatch_dtype(in.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_units<scalar_t>(in.H, [&](auto vec) {
      const int64_t splits = plan_cells(in, vec).splits;
      bytes = splits == 1 ? 0 : ColumnArrays<BiasSums<scalar_t>>::bytes(splits, in.H);
      return Status::success();
    });
  });
  return bytes;
}

template <typename scalar_t, int kVec>
Status forward(const LstmCellForwardParams& p, Stream stream) {
  const ColumnPlan plan = plan_cells(p.in, kVec);
  return launch("lstm_cell_forward", lstm_cell_forward_kernel<scalar_t, kVec>, plan.grid(), plan.block(), 0,
                stream, Cells<scalar_t>(p.in), static_cast<scalar_t*>(p.hy), static_cast<scalar_t*>(p.cy),
                inputs_aligned<scalar_t, kVec>(p.in) && all_aligned<scalar_t, kVec>({p.hy, p.cy}));
}

template <typename scalar_t, int kVec>
Status backward(const LstmCellBackwardParams& p, Stream stream) {
  const ColumnPlan plan = plan_cells(p.in, kVec);
  const BackwardArrays<scalar_t> arrays{
      static_cast<const scalar_t*>(p.grad_hy), static_cast<const scalar_t*>(p.grad_cy),
      static_cast<scalar_t*>(p.grad_gates), static_cast<scalar_t*>(p.grad_cx)};
  const StoreBiasGradient<scalar_t> finish{static_cast<scalar_t*>(p.grad_bias), p.in.H};
  const ColumnArrays<BiasSums<scalar_t>> partials{static_cast<acc_type<scalar_t>*>(p.workspace), p.in.H};
  const bool aligned = inputs_aligned<scalar_t, kVec>(p.in) &&
                       all_aligned<scalar_t, kVec>({p.grad_hy, p.grad_cy, p.grad_gates, p.grad_cx});
  const Status status =
      launch("lstm_cell_backward", lstm_cell_backward_kernel<scalar_t, kVec>, plan.grid(), plan.block(), 0,
             stream, Cells<scalar_t>(p.in), arrays, finish, aligned, partials);
  if (!status.ok()) return status;
  return combine_bias_gradient("lstm_cell_grad_bias", finish, partials, plan, stream);
}

template <typename scalar_t, int kVec>
Status double_backward(const LstmCellDoubleBackwardParams& p, Stream stream) {
  const ColumnPlan plan = plan_cells(p.in, kVec);
  const DoubleBackwardArrays<scalar_t> arrays{static_cast<const scalar_t*>(p.gg_gates),
                                              static_cast<const scalar_t*>(p.gg_cx),
                                              static_cast<const scalar_t*>(p.gg_bias),
                                              static_cast<const scalar_t*>(p.grad_hy),
                                              static_cast<const scalar_t*>(p.grad_cy),
                                              static_cast<scalar_t*>(p.d_grad_hy),
                                              static_cast<scalar_t*>(p.d_grad_cy),
                                              static_cast<scalar_t*>(p.d_gates),
                                              static_cast<scalar_t*>(p.d_cx)};
  const StoreBiasGradient<scalar_t> finish{static_cast<scalar_t*>(p.d_bias), p.in.H};
  const ColumnArrays<BiasSums<scalar_t>> partials{static_cast<acc_type<scalar_t>*>(p.workspace), p.in.H};
  const bool aligned = inputs_aligned<scalar_t, kVec>(p.in) &&
                       all_aligned<scalar_t, kVec>({p.gg_gates, p.gg_cx, p.gg_bias, p.grad_hy, p.grad_cy,
                                                    p.d_grad_hy, p.d_grad_cy, p.d_gates, p.d_cx});
  const Status status =
      launch("lstm_cell_double_backward", lstm_cell_double_backward_kernel<scalar_t, kVec>, plan.grid(),
             plan.block(), 0, stream, Cells<scalar_t>(p.in), arrays, finish, aligned, partials);
  if (!status.ok()) return status;
  return combine_bias_gradient("lstm_cell_d_bias", finish, partials, plan, stream);
}

}  // namespace

Status lstm_cell_forward(const LstmCellForwardParams& p, Stream stream) {
  return dispatch_dtype(p.in.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_units<scalar_t>(p.in.H, [&](auto vec) { return forward<scalar_t, vec>(p, stream); });
  });
}

Status lstm_cell_backward(const LstmCellBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.in.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_units<scalar_t>(p.in.H, [&](auto vec) { return backward<scalar_t, vec>(p, stream); });
  });
}

int64_t lstm_cell_backward_workspace(const LstmCellBackwardParams& p) {
  return p.grad_bias != nullptr ? bias_gradient_workspace(p.in) : 0;
}

Status lstm_cell_double_backward(const LstmCellDoubleBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.in.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_units<scalar_t>(p.in.H,
                                    [&](auto vec) { return double_backward<scalar_t, vec>(p, stream); });
  });
}

int64_t lstm_cell_double_backward_workspace(const LstmCellDoubleBackwardParams& p) {
  return p.d_bias != nullptr ? bias_gradient_workspace(p.in) : 0;
}

}  // namespace fastnn::cuda
