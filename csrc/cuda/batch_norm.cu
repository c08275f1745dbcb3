// Batch normalisation; the formulas stand in ops/batch_norm.h and ops/batch_norm_math.h.
//
// Every direction is at most three launches: a reduction per channel (channels.cuh), a small kernel that
// combines what several blocks found about one channel, and one map of the elements. Where one block has a
// channel to itself it finishes that channel on the spot and the second launch falls away. All are bound by
// memory; per element, in training:
//
//   forward          reads x twice, writes y                                    (3 accesses)
//   backward         reads grad_y and x twice, writes grad_x                    (5)
//   double backward  reads gg_x, grad_y and x twice, writes d_grad_y and d_x    (8)
//
// Evaluation needs no statistics: forward and backward are one map (2 accesses), plus one reduction where the
// parameters' gradients are wanted.
#include "../ops/batch_norm.h"
#include "../ops/batch_norm_math.h"
#include "batch_norm_statistics.cuh"
#include "channels.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// ---- forward ------------------------------------------------------------------------------------------------

template <typename scalar_t_>
struct Normalise {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 1, kOutputs = 1;
  struct Channel {
    acc_t mean, scale, bias;
  };

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  ParamReader<scalar_t> weight, bias;
  const acc_t* mean;
  const acc_t* invstd;
  int64_t* batches;  // the counter of batches, null in evaluation

  // Here and not where the statistics are finished: there other blocks may still have to read it.
  __device__ __forceinline__ void on_first_thread() const {
    if (batches != nullptr) ++*batches;
  }

  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {mean[c], weight.get(c, 1) * invstd[c], bias.get(c, 0)};
  }

  // Not x * scale + (bias - mean * scale), which cancels at large means.
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = (in[0] - k.mean) * k.scale + k.bias;
  }
};

template <typename scalar_t>
Status forward(const BatchNormForwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const auto* x = static_cast<const scalar_t*>(p.x);
  auto* mean = static_cast<acc_t*>(p.mean);
  auto* invstd = static_cast<acc_t*>(p.invstd);
  const ParamReader<scalar_t> running_mean(p.running_mean, p.param_dtype, p.dtype);
  const ParamReader<scalar_t> running_var(p.running_var, p.param_dtype, p.dtype);
  const acc_t eps = static_cast<acc_t>(p.eps);

  Status status;
  if (p.training) {
    if (shape.elements() == 0) return Status::success();  // no batch: nothing to learn from
    const Shift<scalar_t> shift(x, shape);
    const FinishStatistics<scalar_t> finish{shift,
                                            shape.rows(),
                                            eps,
                                            p.momentum,
                                            p.cumulative,
                                            p.num_batches_tracked,
                                            running_mean,
                                            running_var,
                                            {p.running_mean, p.param_dtype, p.dtype},
                                            {p.running_var, p.param_dtype, p.dtype},
                                            mean,
                                            invstd};
    status = reduce_channels("batch_norm_statistics", Statistics<scalar_t>{{x}, shift}, finish, shape,
                             p.workspace, stream);
  } else {
    const TakeRunningStatistics<scalar_t> take{eps, running_mean, running_var, mean, invstd};
    status = combine_partials<acc_t>("batch_norm_running_statistics", take, nullptr, 0, shape.C, stream);
  }
  if (!status.ok()) return status;
  const Normalise<scalar_t> op{{x},
                               {static_cast<scalar_t*>(p.y)},
                               {p.weight, p.param_dtype, p.dtype},
                               {p.bias, p.param_dtype, p.dtype},
                               mean,
                               invstd,
                               p.training ? p.num_batches_tracked : nullptr};
  return map_channels("batch_norm_normalise", op, shape, stream);
}

// ---- backward -----------------------------------------------------------------------------------------------

template <typename scalar_t_, int kInputs_, int kSums>
struct SumsOp {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Channel = Normaliser<acc_t>;
  using State = Sums<acc_t, kSums>;
  using Partial = State;
  static constexpr int kInputs = kInputs_;
  struct Step {};

  const scalar_t* input[kInputs];
  const acc_t* mean;
  const acc_t* invstd;

  __device__ __forceinline__ Channel channel(int64_t c) const { return {mean[c], invstd[c]}; }
  __device__ __forceinline__ Step step(int64_t, int) const { return {}; }
  __device__ __forceinline__ Partial partial(const State& state, int64_t) const { return state; }
};

// sum(gy), sum(gy * xhat)
template <typename scalar_t>
struct BackwardSums : SumsOp<scalar_t, 2, 2> {
  using acc_t = acc_type<scalar_t>;

  template <int kCount>
  __device__ __forceinline__ void add(Sums<acc_t, 2>& sums, const Normaliser<acc_t>& channel,
                                      const acc_t (&values)[2][kCount], const auto&) const {
    Sums<acc_t, 2> chunk{};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      chunk.v[0] += values[0][k];
      chunk.v[1] += values[0][k] * channel.xhat(values[1][k]);
    }
    sums = combine(sums, chunk);
  }
};

template <typename scalar_t>
struct FinishBackward {
  using acc_t = acc_type<scalar_t>;
  bool training;
  int64_t count;
  ParamReader<scalar_t> weight;
  ParamWriter<scalar_t> grad_weight, grad_bias;
  const acc_t* invstd;
  BatchNormBackwardCoefficients<acc_t>* coefficients;

  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_t, 2>& sums) const {
    grad_bias.set(c, sums.v[0]);
    grad_weight.set(c, sums.v[1]);
    coefficients[c] = batch_norm_backward_coefficients(training, static_cast<acc_t>(count), weight.get(c, 1),
                                                       invstd[c], sums.v[0], sums.v[1]);
  }
};

// Training: inputs grad_y, x.
template <typename scalar_t_>
struct GradX {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 2, kOutputs = 1;
  struct Channel {
    Normaliser<acc_t> x;
    BatchNormBackwardCoefficients<acc_t> k;
  };

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  const acc_t* mean;
  const acc_t* invstd;
  const BatchNormBackwardCoefficients<acc_t>* coefficients;

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {{mean[c], invstd[c]}, coefficients[c]};
  }
  __device__ __forceinline__ void apply(const Channel& ch, const acc_t (&in)[2], acc_t (&out)[1]) const {
    out[0] = ((in[0] + ch.k.offset) + ch.x.xhat(in[1]) * ch.k.slope) * ch.k.scale;
  }
};

// Evaluation: grad_y alone, which saves reading x and needs no sums.
template <typename scalar_t_>
struct GradXEvaluation {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 1, kOutputs = 1;
  using Channel = acc_t;

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  ParamReader<scalar_t> weight;
  const acc_t* invstd;

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const { return weight.get(c, 1) * invstd[c]; }
  __device__ __forceinline__ void apply(Channel scale, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = in[0] * scale;
  }
};

// The workspace: the channels' coefficients, then the partial sums.
template <typename Coefficients>
int64_t coefficient_bytes(int64_t C) {
  return ceil_div(C * static_cast<int64_t>(sizeof(Coefficients)), 64) * 64;
}

template <typename scalar_t>
Status backward(const BatchNormBackwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = BatchNormBackwardCoefficients<acc_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const auto* grad_y = static_cast<const scalar_t*>(p.grad_y);
  const auto* x = static_cast<const scalar_t*>(p.x);
  auto* grad_x = static_cast<scalar_t*>(p.grad_x);
  const auto* mean = static_cast<const acc_t*>(p.mean);
  const auto* invstd = static_cast<const acc_t*>(p.invstd);
  auto* coefficients = static_cast<Coefficients*>(p.workspace);
  const ParamReader<scalar_t> weight(p.weight, p.param_dtype, p.dtype);

  if ((p.training && grad_x != nullptr) || p.grad_weight != nullptr || p.grad_bias != nullptr) {
    const FinishBackward<scalar_t> finish{p.training,
                                          shape.rows() > 0 ? shape.rows() : 1,
                                          weight,
                                          {p.grad_weight, p.param_dtype, p.dtype},
                                          {p.grad_bias, p.param_dtype, p.dtype},
                                          invstd,
                                          coefficients};
    const BackwardSums<scalar_t> op{{{grad_y, x}, mean, invstd}};
    void* partials = static_cast<unsigned char*>(p.workspace) + coefficient_bytes<Coefficients>(shape.C);
    const Status status = reduce_channels("batch_norm_backward_sums", op, finish, shape, partials, stream);
    if (!status.ok()) return status;
  }
  if (grad_x == nullptr) return Status::success();
  if (!p.training) {
    return map_channels("batch_norm_grad_x", GradXEvaluation<scalar_t>{{grad_y}, {grad_x}, weight, invstd},
                        shape, stream);
  }
  return map_channels("batch_norm_grad_x", GradX<scalar_t>{{grad_y, x}, {grad_x}, mean, invstd, coefficients},
                      shape, stream);
}

// ---- double backward ----------------------------------------------------------------------------------------

// sum(gx), sum(gy), sum(gx * xhat), sum(gy * xhat), sum(gx * gy); inputs gg_x, grad_y, x
template <typename scalar_t>
struct DoubleBackwardSums : SumsOp<scalar_t, 3, 5> {
  using acc_t = acc_type<scalar_t>;

  template <int kCount>
  __device__ __forceinline__ void add(Sums<acc_t, 5>& sums, const Normaliser<acc_t>& channel,
                                      const acc_t (&values)[3][kCount], const auto&) const {
    Sums<acc_t, 5> chunk{};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const acc_t gx = values[0][k], gy = values[1][k], xhat = channel.xhat(values[2][k]);
      chunk.v[0] += gx;
      chunk.v[1] += gy;
      chunk.v[2] += gx * xhat;
      chunk.v[3] += gy * xhat;
      chunk.v[4] += gx * gy;
    }
    sums = combine(sums, chunk);
  }
};

template <typename scalar_t>
struct FinishDoubleBackward {
  using acc_t = acc_type<scalar_t>;
  bool training;
  int64_t count;
  ParamReader<scalar_t> weight, gg_weight, gg_bias;
  ParamWriter<scalar_t> d_weight;
  const acc_t* invstd;
  BatchNormDoubleBackwardCoefficients<acc_t>* coefficients;

  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_t, 5>& sums) const {
    const BatchNormDoubleBackwardSums<acc_t> sum{sums.v[0], sums.v[1], sums.v[2], sums.v[3], sums.v[4]};
    const auto k =
        batch_norm_double_backward_coefficients(training, static_cast<acc_t>(count), weight.get(c, 1),
                                                invstd[c], gg_weight.get(c, 0), gg_bias.get(c, 0), sum);
    d_weight.set(c, k.d_weight);
    coefficients[c] = k;
  }
};

// Inputs gg_x, grad_y, x; outputs d_grad_y, d_x.
template <typename scalar_t_>
struct DoubleBackwardMap {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 3, kOutputs = 2;
  struct Channel {
    Normaliser<acc_t> x;
    BatchNormDoubleBackwardCoefficients<acc_t> k;
  };

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  bool training;
  const acc_t* mean;
  const acc_t* invstd;
  const BatchNormDoubleBackwardCoefficients<acc_t>* coefficients;

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {{mean[c], invstd[c]}, coefficients[c]};
  }
  __device__ __forceinline__ void apply(const Channel& ch, const acc_t (&in)[3], acc_t (&out)[2]) const {
    const acc_t gx = in[0], gy = in[1], xhat = ch.x.xhat(in[2]);
    const auto& k = ch.k;
    out[0] = gx * k.y_gx + xhat * k.y_xhat + k.y_one;
    // The other terms are 0 in evaluation, but 0 times inf is not.
    out[1] = training ? gx * k.x_gx + gy * k.x_gy + xhat * k.x_xhat + k.x_one : gy * k.x_gy;
  }
};

template <typename scalar_t>
Status double_backward(const BatchNormDoubleBackwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = BatchNormDoubleBackwardCoefficients<acc_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const auto* gg_x = static_cast<const scalar_t*>(p.gg_x);
  const auto* grad_y = static_cast<const scalar_t*>(p.grad_y);
  const auto* x = static_cast<const scalar_t*>(p.x);
  auto* d_grad_y = static_cast<scalar_t*>(p.d_grad_y);
  auto* d_x = static_cast<scalar_t*>(p.d_x);
  const auto* mean = static_cast<const acc_t*>(p.mean);
  const auto* invstd = static_cast<const acc_t*>(p.invstd);
  auto* coefficients = static_cast<Coefficients*>(p.workspace);
  const FinishDoubleBackward<scalar_t> finish{p.training,
                                              shape.rows() > 0 ? shape.rows() : 1,
                                              {p.weight, p.param_dtype, p.dtype},
                                              {p.gg_weight, p.param_dtype, p.dtype},
                                              {p.gg_bias, p.param_dtype, p.dtype},
                                              {p.d_weight, p.param_dtype, p.dtype},
                                              invstd,
                                              coefficients};
  Status status;
  if (p.training || p.d_weight != nullptr) {
    // Evaluation needs sum(gx * gy) alone, and neither x nor the sums that go with it.
    const DoubleBackwardSums<scalar_t> op{{{gg_x, grad_y, p.training ? x : nullptr}, mean, invstd}};
    void* partials = static_cast<unsigned char*>(p.workspace) + coefficient_bytes<Coefficients>(shape.C);
    status = reduce_channels("batch_norm_double_backward_sums", op, finish, shape, partials, stream);
  } else {
    status = combine_partials<Sums<acc_t, 5>>("batch_norm_double_backward_coefficients", finish, nullptr, 0,
                                              shape.C, stream);
  }
  if (!status.ok() || (d_grad_y == nullptr && d_x == nullptr)) return status;
  // In evaluation x is read only where gg_weight multiplies it.
  const bool reads_x = p.training || (d_grad_y != nullptr && p.gg_weight != nullptr);
  const DoubleBackwardMap<scalar_t> op{
      {gg_x, grad_y, reads_x ? x : nullptr}, {d_grad_y, d_x}, p.training, mean, invstd, coefficients};
  return map_channels("batch_norm_double_backward", op, shape, stream);
}

template <template <typename> class Op>
int64_t reduction_workspace(DType dtype, const BatchNormShape& shape) {
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    bytes = reduce_channels_workspace<Op<scalar_t>>(ChannelShape(shape.layout, shape.N, shape.C, shape.S));
    return Status::success();
  });
  return bytes;
}

// Coefficients in the largest accumulation type: a few bytes a channel too many for most.
template <template <typename> class Coefficients>
int64_t coefficient_workspace(const BatchNormShape& shape) {
  return coefficient_bytes<Coefficients<double>>(shape.C);
}

}  // namespace

Status batch_norm_forward(const BatchNormForwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return forward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_forward_workspace(const BatchNormForwardParams& p) {
  return p.training ? reduction_workspace<Statistics>(p.dtype, p.shape) : 0;
}

Status batch_norm_backward(const BatchNormBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_backward_workspace(const BatchNormBackwardParams& p) {
  return coefficient_workspace<BatchNormBackwardCoefficients>(p.shape) +
         reduction_workspace<BackwardSums>(p.dtype, p.shape);
}

Status batch_norm_double_backward(const BatchNormDoubleBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype,
                        [&](auto tag) { return double_backward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_double_backward_workspace(const BatchNormDoubleBackwardParams& p) {
  return coefficient_workspace<BatchNormDoubleBackwardCoefficients>(p.shape) +
         reduction_workspace<DoubleBackwardSums>(p.dtype, p.shape);
}

}  // namespace fastnn::cuda
