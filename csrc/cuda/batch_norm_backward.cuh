// Backward of batch norm, with what followed it in the same pass: the ops of its passes, and which are run.
//
//   training     two sums of each channel, then the map: one launch where a channel stays on the chip, else
//                three (channels_held.cuh, channels_two_pass.cuh). grad_y and x are read once or twice, grad_x
//                written; and where an activation followed, a bit an element or the residual read as often, and
//                the residual's gradient written.
//   evaluation   the map of grad_y alone, and the sums where the parameters' gradients are wanted.
//
// Sums are found the same way whichever gradients are wanted, so that each has the same bits alone as with all.
#pragma once

#include <type_traits>

#include "batch_norm_activation.cuh"
#include "batch_norm_statistics.cuh"
#include "channels_held.cuh"

namespace fastnn::cuda {
namespace {

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

template <typename scalar_t>
struct BackwardSums : SumsOp<scalar_t, 2, 2> {
  using acc_t = acc_type<scalar_t>;

  template <int kCount>
  __device__ __forceinline__ void add(Sums<acc_t, 2>& sums, const Normaliser<acc_t>& channel,
                                      const acc_t (&values)[2][kCount], const auto&) const {
    add_gradients(sums, channel, values);
  }
};

// The same of grad_y * y' for grad_y; inputs grad_y, x and, where there are no bits, the residual.
template <typename scalar_t_>
struct ActivatedBackwardSums {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using State = Sums<acc_t, 2>;
  using Partial = State;
  static constexpr int kInputs = 3;
  static constexpr Bits kBits = Bits::kRead;
  struct Channel {
    Normaliser<acc_t> x;
    typename ActivationGradient<scalar_t>::Channel act;
  };
  struct Step {};

  const scalar_t* input[kInputs];
  const acc_t* mean;
  const acc_t* invstd;
  ActivationGradient<scalar_t> gradient;

  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {{mean[c], invstd[c]}, gradient.channel(c, mean[c])};
  }
  __device__ __forceinline__ Step step(int64_t, int) const { return {}; }
  __device__ __forceinline__ Partial partial(const State& state, int64_t) const { return state; }

  __host__ __device__ __forceinline__ bool has_bits() const { return gradient.has_bits(); }
  template <int kVec>
  __device__ __forceinline__ uint32_t bits(int64_t i) const {
    return gradient.template bits<kVec>(i);
  }
  template <int kCount>
  __device__ __forceinline__ void adjust(const Channel& k, acc_t (&values)[3][kCount], int i, bool bit) const {
    values[0][i] = gradient(k.act, values[0][i], values[1][i], values[2][i], bit);
  }
  template <int kCount>
  __device__ __forceinline__ void add(State& sums, const Channel& channel, const acc_t (&values)[3][kCount],
                                      const auto&) const {
    add_gradients(sums, channel.x, values);
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
  ColumnArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ BatchNormBackwardCoefficients<acc_t> find(int64_t c,
                                                                       const Sums<acc_t, 2>& sums) const {
    return batch_norm_backward_coefficients(training, static_cast<acc_t>(count), weight.get(c, 1), invstd[c],
                                            sums.v[0], sums.v[1]);
  }
  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_t, 2>& sums) const {
    grad_bias.set(c, sums.v[0]);
    grad_weight.set(c, sums.v[1]);
    coefficients.set(0, c, find(c, sums));
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
  ColumnArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t c) const { return channel(c, coefficients.get(0, c)); }
  __device__ __forceinline__ Channel channel(int64_t c, const BatchNormBackwardCoefficients<acc_t>& k) const {
    return {{mean[c], invstd[c]}, k};
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

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t c) const { return weight.get(c, 1) * invstd[c]; }
  __device__ __forceinline__ void apply(Channel scale, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = in[0] * scale;
  }
};

// Inputs grad_y, x, residual; outputs grad_x, grad_residual.
template <typename scalar_t_>
struct ActivatedGradX {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 3, kOutputs = 2;
  static constexpr Bits kBits = Bits::kRead;
  struct Channel {
    Normaliser<acc_t> x;
    BatchNormBackwardCoefficients<acc_t> k;
    typename ActivationGradient<scalar_t>::Channel act;
  };

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  bool training;
  const acc_t* mean;
  const acc_t* invstd;
  ColumnArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients;  // training
  ActivationGradient<scalar_t> gradient;

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    if (training) return channel(c, coefficients.get(0, c));
    return channel(c, {gradient.scale[c], acc_t(0), acc_t(0)});
  }
  __device__ __forceinline__ Channel channel(int64_t c, const BatchNormBackwardCoefficients<acc_t>& k) const {
    return {{mean[c], invstd[c]}, k, gradient.channel(c, mean[c])};
  }
  __host__ __device__ __forceinline__ bool has_bits() const { return gradient.has_bits(); }
  template <int kVec>
  __device__ __forceinline__ uint32_t bits(int64_t i) const {
    return gradient.template bits<kVec>(i);
  }
  __device__ __forceinline__ void apply(const Channel& ch, const acc_t (&in)[3], acc_t (&out)[2],
                                        bool bit) const {
    const acc_t g = gradient(ch.act, in[0], in[1], in[2], bit);
    out[0] = training ? ((g + ch.k.offset) + ch.x.xhat(in[1]) * ch.k.slope) * ch.k.scale : g * ch.k.scale;
    out[1] = g;
  }
};

// grad_y * y' alone; inputs grad_y, x, residual.
template <typename scalar_t_>
struct ActivationGradientMap {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 3, kOutputs = 1;
  static constexpr Bits kBits = Bits::kRead;
  using Channel = typename ActivationGradient<scalar_t>::Channel;

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  const acc_t* mean;
  ActivationGradient<scalar_t> gradient;

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t c) const { return gradient.channel(c, mean[c]); }
  __host__ __device__ __forceinline__ bool has_bits() const { return gradient.has_bits(); }
  template <int kVec>
  __device__ __forceinline__ uint32_t bits(int64_t i) const {
    return gradient.template bits<kVec>(i);
  }
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[3], acc_t (&out)[1],
                                        bool bit) const {
    out[0] = gradient(k, in[0], in[1], in[2], bit);
  }
};

// The workspace: the channels' coefficients, then what the passes want.
template <typename Coefficients>
int64_t coefficient_bytes(int64_t C) {
  return ceil_div(C * static_cast<int64_t>(sizeof(Coefficients)), 64) * 64;
}

// The sums and the map of p, as f takes them.
template <typename scalar_t, typename F>
auto with_backward(const BatchNormBackwardParams& p, const F& f) {
  using acc_t = acc_type<scalar_t>;
  const ColumnArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients{static_cast<acc_t*>(p.workspace),
                                                                               p.shape.C};
  const auto* grad_y = static_cast<const scalar_t*>(p.grad_y);
  const auto* x = static_cast<const scalar_t*>(p.x);
  const auto* mean = static_cast<const acc_t*>(p.mean);
  const auto* invstd = static_cast<const acc_t*>(p.invstd);
  auto* grad_x = static_cast<scalar_t*>(p.grad_x);
  if (p.activation.kind == Activation::kNone) {
    return f(BackwardSums<scalar_t>{{{grad_y, x}, mean, invstd}},
             GradX<scalar_t>{{grad_y, x}, {grad_x}, mean, invstd, coefficients});
  }
  const auto* residual = static_cast<const scalar_t*>(p.activation.residual);
  const ActivationGradient<scalar_t> gradient(p.activation);
  return f(ActivatedBackwardSums<scalar_t>{{grad_y, x, residual}, mean, invstd, gradient},
           ActivatedGradX<scalar_t>{{grad_y, x, residual},
                                    {grad_x, static_cast<scalar_t*>(p.grad_residual)},
                                    p.training && grad_x != nullptr,
                                    mean,
                                    invstd,
                                    coefficients,
                                    gradient});
}

template <typename scalar_t>
int64_t backward_workspace(const BatchNormBackwardParams& p) {
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  return coefficient_bytes<BatchNormBackwardCoefficients<acc_type<scalar_t>>>(p.shape.C) +
         with_backward<scalar_t>(p, [&](const auto& sums, const auto& map) {
           using Sums = std::decay_t<decltype(sums)>;
           return p.training ? reduce_and_map_workspace<Sums>(map, shape)
                             : reduce_channels_workspace<Sums>(shape);
         });
}

template <typename scalar_t>
Status backward(const BatchNormBackwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  using Coefficients = BatchNormBackwardCoefficients<acc_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const bool activated = p.activation.kind != Activation::kNone;
  const bool sums_wanted =
      (p.training && p.grad_x != nullptr) || p.grad_weight != nullptr || p.grad_bias != nullptr;
  const FinishBackward<scalar_t> finish{p.training,
                                        shape.rows() > 0 ? shape.rows() : 1,
                                        {p.weight, p.param_dtype, p.dtype},
                                        {p.grad_weight, p.param_dtype, p.dtype},
                                        {p.grad_bias, p.param_dtype, p.dtype},
                                        static_cast<const acc_t*>(p.invstd),
                                        {static_cast<acc_t*>(p.workspace), shape.C}};
  void* const passes = static_cast<unsigned char*>(p.workspace) + coefficient_bytes<Coefficients>(shape.C);
  constexpr PassNames kPlain{"batch_norm_backward_sums", "batch_norm_grad_x", "batch_norm_backward_held",
                             "batch_norm_backward_held_by_cluster", "batch_norm_backward_held_by_grid"};
  constexpr PassNames kActivated{
      "batch_norm_activated_backward_sums", "batch_norm_activated_grad_x", "batch_norm_activated_backward_held",
      "batch_norm_activated_backward_held_by_cluster", "batch_norm_activated_backward_held_by_grid"};
  const PassNames names = activated ? kActivated : kPlain;
  return with_backward<scalar_t>(p, [&](const auto& sums, const auto& map) {
    if (sums_wanted && p.training) {
      return reduce_and_map(names, sums, finish, map, shape, passes, stream);
    }
    if (sums_wanted) {
      const Status status = reduce_channels(names.reduce, sums, finish, shape, passes, stream);
      if (!status.ok()) return status;
    }
    if (activated || p.grad_x == nullptr) return map_channels(names.map, map, shape, stream);
    const GradXEvaluation<scalar_t> alone{{map.input[0]}, {map.output[0]}, finish.weight, finish.invstd};
    return map_channels(names.map, alone, shape, stream);
  });
}

// grad_y * y' alone.
template <typename scalar_t>
Status activation_gradient(const BatchNormApplyParams& p, const ChannelShape& shape, Stream stream) {
  const ActivationGradientMap<scalar_t> op{
      {static_cast<const scalar_t*>(p.grad_y), static_cast<const scalar_t*>(p.x),
       static_cast<const scalar_t*>(p.activation.residual)},
      {static_cast<scalar_t*>(p.out)},
      static_cast<const acc_type<scalar_t>*>(p.mean),
      ActivationGradient<scalar_t>(p.activation)};
  return map_channels("batch_norm_activation_gradient", op, shape, stream);
}

}  // namespace
}  // namespace fastnn::cuda
