// Double backward of batch norm: five sums of each channel, then a map, in two passes (channels_two_pass.cuh),
// which read gg_x, grad_y and x twice and write d_grad_y and d_x: 8 accesses of an element. It is the rarest of
// the three, and holding three inputs would leave few shapes that fit.
#pragma once

#include "batch_norm_backward.cuh"
#include "batch_norm_statistics.cuh"
#include "channels_two_pass.cuh"

namespace fastnn::cuda {
namespace {

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
  ColumnArrays<BatchNormDoubleBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_t, 5>& sums) const {
    const BatchNormDoubleBackwardSums<acc_t> sum{sums.v[0], sums.v[1], sums.v[2], sums.v[3], sums.v[4]};
    const auto k =
        batch_norm_double_backward_coefficients(training, static_cast<acc_t>(count), weight.get(c, 1),
                                                invstd[c], gg_weight.get(c, 0), gg_bias.get(c, 0), sum);
    d_weight.set(c, k.d_weight);
    coefficients.set(0, c, k);
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
  ColumnArrays<BatchNormDoubleBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {{mean[c], invstd[c]}, coefficients.get(0, c)};
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
  const ColumnArrays<Coefficients, acc_t> coefficients{static_cast<acc_t*>(p.workspace), shape.C};
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
    status = combine_partials("batch_norm_double_backward_coefficients", finish, ColumnArrays<Sums<acc_t, 5>>{},
                              0, shape.C, stream);
  }
  if (!status.ok() || (d_grad_y == nullptr && d_x == nullptr)) return status;
  // In evaluation x is read only where gg_weight multiplies it.
  const bool reads_x = p.training || (d_grad_y != nullptr && p.gg_weight != nullptr);
  const DoubleBackwardMap<scalar_t> op{
      {gg_x, grad_y, reads_x ? x : nullptr}, {d_grad_y, d_x}, p.training, mean, invstd, coefficients};
  return map_channels("batch_norm_double_backward", op, shape, stream);
}

template <typename scalar_t>
int64_t double_backward_workspace(const BatchNormDoubleBackwardParams& p) {
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  return coefficient_bytes<BatchNormDoubleBackwardCoefficients<acc_type<scalar_t>>>(p.shape.C) +
         reduce_channels_workspace<DoubleBackwardSums<scalar_t>>(shape);
}

}  // namespace
}  // namespace fastnn::cuda
