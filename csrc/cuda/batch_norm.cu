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
#include <type_traits>

#include "../ops/batch_norm.h"
#include "../ops/batch_norm_math.h"
#include "batch_norm_activation.cuh"
#include "batch_norm_statistics.cuh"
#include "channels.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// ---- forward ------------------------------------------------------------------------------------------------

// What the last pass of forward knows of a channel; and the counter of batches.
template <typename scalar_t_>
struct NormaliseOp {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kOutputs = 1;
  struct Channel {
    acc_t mean, scale, shift;

    // Not x * scale + (shift - mean * scale), which cancels at large means.
    __device__ __forceinline__ acc_t z(acc_t x) const { return multiply_add(x - mean, scale, shift); }
  };

  const acc_t* mean;
  const acc_t* scale;
  const acc_t* shift;
  int64_t* batches;  // null where it does not move

  // Here and not where the statistics are finished: there other blocks may still have to read it.
  __device__ __forceinline__ void on_first_thread() const {
    if (batches != nullptr) ++*batches;
  }
  __device__ __forceinline__ Channel channel(int64_t c) const { return {mean[c], scale[c], shift[c]}; }
  template <int kVec>
  __device__ __forceinline__ void channels(int64_t c, Channel (&channel)[kVec]) const {
    acc_t means[kVec], scales[kVec], shifts[kVec];
    load_values(mean, c, means);
    load_values(scale, c, scales);
    load_values(shift, c, shifts);
#pragma unroll
    for (int k = 0; k < kVec; ++k) channel[k] = {means[k], scales[k], shifts[k]};
  }
};

template <typename scalar_t>
struct Normalise : NormaliseOp<scalar_t> {
  using acc_t = acc_type<scalar_t>;
  using Channel = typename NormaliseOp<scalar_t>::Channel;
  static constexpr int kInputs = 1;
  const scalar_t* input[kInputs];
  scalar_t* output[1];

  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = k.z(in[0]);
  }
};

// With a residual and an activation; inputs x, residual.
template <typename scalar_t, Bits kBits_>
struct NormaliseActivate : NormaliseOp<scalar_t> {
  using acc_t = acc_type<scalar_t>;
  using Channel = typename NormaliseOp<scalar_t>::Channel;
  static constexpr int kInputs = 2;
  static constexpr Bits kBits = kBits_;
  const scalar_t* input[kInputs];
  scalar_t* output[1];
  ActivationOf<scalar_t> act;
  MaskWords<scalar_t> mask;

  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[2], acc_t (&out)[1]) const {
    out[0] = act.value(input[1] != nullptr ? k.z(in[0]) + in[1] : k.z(in[0]));
  }
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[2], acc_t (&out)[1],
                                        bool& bit) const {
    const acc_t z = k.z(in[0]) + in[1];
    bit = act.positive(z);
    out[0] = act.value(z);
  }
  __device__ __forceinline__ void store_bits(int64_t i, uint32_t bits) const { mask.store(i, bits); }
};

// The last pass of forward.
template <typename scalar_t>
Status normalise(const scalar_t* x, const acc_type<scalar_t>* mean, const acc_type<scalar_t>* scale,
                 const acc_type<scalar_t>* shift, int64_t* batches, const BatchNormActivation& a, scalar_t* y,
                 const ChannelShape& shape, Stream stream) {
  const NormaliseOp<scalar_t> channels{mean, scale, shift, batches};
  if (a.kind == Activation::kNone) {
    return map_channels("batch_norm_normalise", Normalise<scalar_t>{channels, {x}, {y}}, shape, stream);
  }
  const auto activate = [&](auto bits) {
    const NormaliseActivate<scalar_t, decltype(bits)::value> op{channels,
                                                                {x, static_cast<const scalar_t*>(a.residual)},
                                                                {y},
                                                                ActivationOf<scalar_t>(a),
                                                                {static_cast<uint32_t*>(a.mask)}};
    return map_channels("batch_norm_normalise_activate", op, shape, stream);
  };
  if (a.mask != nullptr) return activate(std::integral_constant<Bits, Bits::kWritten>{});
  return activate(std::integral_constant<Bits, Bits::kNone>{});
}

// The workspace: scale and shift where the caller does not keep them, what is held back of the statistics, then
// the partial sums.
template <typename acc_t>
int64_t forward_values(const BatchNormForwardParams& p) {
  const bool holds_back = p.training && p.skip_nonfinite;
  return ceil_div(((p.activation.scale == nullptr ? 2 : 0) + (holds_back ? 2 : 0)) * p.shape.C *
                      static_cast<int64_t>(sizeof(acc_t)),
                  64) *
         64 / static_cast<int64_t>(sizeof(acc_t));
}

template <typename scalar_t>
Status forward(const BatchNormForwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const auto* x = static_cast<const scalar_t*>(p.x);
  auto* mean = static_cast<acc_t*>(p.mean);
  auto* values = static_cast<acc_t*>(p.workspace);
  void* partials = values + forward_values<acc_t>(p);
  auto* scale = static_cast<acc_t*>(p.activation.scale);
  auto* shift = static_cast<acc_t*>(p.activation.shift);
  if (scale == nullptr) {
    scale = values;
    shift = values + shape.C;
    values += 2 * shape.C;
  }
  const ParamReader<scalar_t> running_mean(p.running_mean, p.param_dtype, p.dtype);
  const ParamReader<scalar_t> running_var(p.running_var, p.param_dtype, p.dtype);
  const ForwardChannels<scalar_t> channels{{p.weight, p.param_dtype, p.dtype},
                                           {p.bias, p.param_dtype, p.dtype},
                                           static_cast<acc_t>(p.eps),
                                           mean,
                                           static_cast<acc_t*>(p.invstd),
                                           scale,
                                           shift};
  int64_t* batches = nullptr;
  Status status;
  if (p.training) {
    if (shape.elements() == 0) return Status::success();  // no batch: nothing to learn from
    const RunningStatistics<scalar_t> running{p.momentum,
                                              p.cumulative,
                                              p.num_batches_tracked,
                                              running_mean,
                                              running_var,
                                              {p.running_mean, p.param_dtype, p.dtype},
                                              {p.running_var, p.param_dtype, p.dtype}};
    acc_t* const held_back = p.skip_nonfinite ? values : nullptr;
    const Shift<scalar_t> origin(x, shape);
    const FinishStatistics<scalar_t> finish{origin, shape.rows(), channels, running, held_back, shape.C};
    status = reduce_channels("batch_norm_statistics", Statistics<scalar_t>{{x}, origin}, finish, shape,
                             partials, stream);
    if (!status.ok()) return status;
    if (held_back == nullptr) {
      batches = p.num_batches_tracked;
    } else {
      status = launch("batch_norm_commit_statistics", commit_statistics_kernel<scalar_t>, dim3(1),
                      dim3(kCommitThreads), 0, stream, running, held_back, shape.C, p.num_batches_tracked);
    }
  } else {
    const TakeRunningStatistics<scalar_t> take{running_mean, running_var, channels};
    status = combine_partials<acc_t>("batch_norm_running_statistics", take, nullptr, 0, shape.C, stream);
  }
  if (!status.ok()) return status;
  return normalise(x, static_cast<const acc_t*>(mean), static_cast<const acc_t*>(scale),
                   static_cast<const acc_t*>(shift), batches, p.activation, static_cast<scalar_t*>(p.y), shape,
                   stream);
}

// ---- backward -----------------------------------------------------------------------------------------------

template <int kVec, typename acc_t>
__device__ __forceinline__ void load_normalisers(const acc_t* mean, const acc_t* invstd, int64_t c,
                                                 Normaliser<acc_t> (&out)[kVec]) {
  acc_t means[kVec], invstds[kVec];
  load_values(mean, c, means);
  load_values(invstd, c, invstds);
#pragma unroll
  for (int k = 0; k < kVec; ++k) out[k] = {means[k], invstds[k]};
}

// Coefficients of the last pass, kCount numbers a channel, each [C]: of a vector of channels they are vectors.
template <typename Coefficients, typename acc_t>
struct CoefficientArrays {
  static constexpr int kCount = sizeof(Coefficients) / sizeof(acc_t);
  acc_t* values;
  int64_t C;

  __device__ __forceinline__ void set(int64_t c, const Coefficients& k) const {
    const auto& numbers = reinterpret_cast<const acc_t(&)[kCount]>(k);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i * C + c] = numbers[i];
  }
  __device__ __forceinline__ Coefficients get(int64_t c) const {
    Coefficients k;
#pragma unroll
    for (int i = 0; i < kCount; ++i) reinterpret_cast<acc_t(&)[kCount]>(k)[i] = values[i * C + c];
    return k;
  }
  template <int kVec>
  __device__ __forceinline__ void get(int64_t c, Coefficients (&out)[kVec]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      acc_t numbers[kVec];
      load_values<kVec>(static_cast<const acc_t*>(values) + i * C, c, numbers);
#pragma unroll
      for (int k = 0; k < kVec; ++k) reinterpret_cast<acc_t(&)[kCount]>(out[k])[i] = numbers[k];
    }
  }
};

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
  template <int kVec>
  __device__ __forceinline__ void channels(int64_t c, Channel (&channel)[kVec]) const {
    load_normalisers(mean, invstd, c, channel);
  }
  __device__ __forceinline__ Step step(int64_t, int) const { return {}; }
  __device__ __forceinline__ Partial partial(const State& state, int64_t) const { return state; }
};

// Adds sum(gy), sum(gy * xhat) of values gy, x, ...
template <typename acc_t, int kInputs, int kCount>
__device__ __forceinline__ void add_gradients(Sums<acc_t, 2>& sums, const Normaliser<acc_t>& channel,
                                              const acc_t (&values)[kInputs][kCount]) {
  Sums<acc_t, 2> chunk{};
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    chunk.v[0] += values[0][k];
    chunk.v[1] += values[0][k] * channel.xhat(values[1][k]);
  }
  sums = combine(sums, chunk);
}

template <typename scalar_t>
struct BackwardSums : SumsOp<scalar_t, 2, 2> {
  using acc_t = acc_type<scalar_t>;

  template <int kCount>
  __device__ __forceinline__ void add(Sums<acc_t, 2>& sums, const Normaliser<acc_t>& channel,
                                      const acc_t (&values)[2][kCount], const auto&) const {
    add_gradients(sums, channel, values);
  }
};

// The same of grad_y * y' for grad_y; inputs grad_y, x and, for some activations, y.
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
  template <int kVec>
  __device__ __forceinline__ void channels(int64_t c, Channel (&channel)[kVec]) const {
    Normaliser<acc_t> x[kVec];
    typename ActivationGradient<scalar_t>::Channel act[kVec];
    load_normalisers(mean, invstd, c, x);
    gradient.channels(c, x, act);
#pragma unroll
    for (int i = 0; i < kVec; ++i) channel[i] = {x[i], act[i]};
  }
  __device__ __forceinline__ Step step(int64_t, int) const { return {}; }
  __device__ __forceinline__ Partial partial(const State& state, int64_t) const { return state; }

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
  CoefficientArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_t, 2>& sums) const {
    grad_bias.set(c, sums.v[0]);
    grad_weight.set(c, sums.v[1]);
    coefficients.set(c, batch_norm_backward_coefficients(training, static_cast<acc_t>(count), weight.get(c, 1),
                                                         invstd[c], sums.v[0], sums.v[1]));
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
  CoefficientArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {{mean[c], invstd[c]}, coefficients.get(c)};
  }
  template <int kVec>
  __device__ __forceinline__ void channels(int64_t c, Channel (&channel)[kVec]) const {
    Normaliser<acc_t> x[kVec];
    BatchNormBackwardCoefficients<acc_t> k[kVec];
    load_normalisers(mean, invstd, c, x);
    coefficients.get(c, k);
#pragma unroll
    for (int i = 0; i < kVec; ++i) channel[i] = {x[i], k[i]};
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
  template <int kVec>
  __device__ __forceinline__ void channels(int64_t c, Channel (&channel)[kVec]) const {
    acc_t weights[kVec], invstds[kVec];
    weight.get(c, acc_t(1), weights);
    load_values(invstd, c, invstds);
#pragma unroll
    for (int k = 0; k < kVec; ++k) channel[k] = weights[k] * invstds[k];
  }
  __device__ __forceinline__ void apply(Channel scale, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = in[0] * scale;
  }
};

// Inputs grad_y, x, y; outputs grad_x, grad_residual.
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
  CoefficientArrays<BatchNormBackwardCoefficients<acc_t>, acc_t> coefficients;  // training
  ActivationGradient<scalar_t> gradient;

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    const auto act = gradient.channel(c, mean[c]);
    if (training) return {{mean[c], invstd[c]}, coefficients.get(c), act};
    return {{mean[c], invstd[c]}, {act.scale, acc_t(0), acc_t(0)}, act};
  }
  template <int kVec>
  __device__ __forceinline__ void channels(int64_t c, Channel (&channel)[kVec]) const {
    Normaliser<acc_t> x[kVec];
    BatchNormBackwardCoefficients<acc_t> k[kVec];
    typename ActivationGradient<scalar_t>::Channel act[kVec];
    load_normalisers(mean, invstd, c, x);
    gradient.channels(c, x, act);
    if (training) coefficients.get(c, k);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      if (!training) k[i] = {act[i].scale, acc_t(0), acc_t(0)};
      channel[i] = {x[i], k[i], act[i]};
    }
  }
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

// grad_y * y' alone; inputs grad_y, x, y.
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

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const { return gradient.channel(c, mean[c]); }
  template <int kVec>
  __device__ __forceinline__ uint32_t bits(int64_t i) const {
    return gradient.template bits<kVec>(i);
  }
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[3], acc_t (&out)[1],
                                        bool bit) const {
    out[0] = gradient(k, in[0], in[1], in[2], bit);
  }
};

template <typename scalar_t>
Status apply(const BatchNormApplyParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const ChannelShape shape(p.shape.layout, p.shape.N, p.shape.C, p.shape.S);
  const auto* x = static_cast<const scalar_t*>(p.x);
  const auto* mean = static_cast<const acc_t*>(p.mean);
  auto* out = static_cast<scalar_t*>(p.out);
  if (p.grad_y == nullptr) {
    return normalise(x, mean, static_cast<const acc_t*>(p.activation.scale),
                     static_cast<const acc_t*>(p.activation.shift), nullptr, p.activation, out, shape, stream);
  }
  const ActivationGradientMap<scalar_t> op{
      {static_cast<const scalar_t*>(p.grad_y), x, static_cast<const scalar_t*>(p.activation.y)},
      {out},
      mean,
      ActivationGradient<scalar_t>(p.activation)};
  return map_channels("batch_norm_activation_gradient", op, shape, stream);
}

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
  const CoefficientArrays<Coefficients, acc_t> coefficients{static_cast<acc_t*>(p.workspace), shape.C};
  const ParamReader<scalar_t> weight(p.weight, p.param_dtype, p.dtype);
  const bool activated = p.activation.kind != Activation::kNone;
  const auto* y = static_cast<const scalar_t*>(p.activation.y);

  if ((p.training && grad_x != nullptr) || p.grad_weight != nullptr || p.grad_bias != nullptr) {
    const FinishBackward<scalar_t> finish{p.training,
                                          shape.rows() > 0 ? shape.rows() : 1,
                                          weight,
                                          {p.grad_weight, p.param_dtype, p.dtype},
                                          {p.grad_bias, p.param_dtype, p.dtype},
                                          invstd,
                                          coefficients};
    void* partials = static_cast<unsigned char*>(p.workspace) + coefficient_bytes<Coefficients>(shape.C);
    Status status;
    if (activated) {
      const ActivatedBackwardSums<scalar_t> op{
          {grad_y, x, y}, mean, invstd, ActivationGradient<scalar_t>(p.activation)};
      status = reduce_channels("batch_norm_activated_backward_sums", op, finish, shape, partials, stream);
    } else {
      const BackwardSums<scalar_t> op{{{grad_y, x}, mean, invstd}};
      status = reduce_channels("batch_norm_backward_sums", op, finish, shape, partials, stream);
    }
    if (!status.ok()) return status;
  }
  if (activated) {
    auto* grad_residual = static_cast<scalar_t*>(p.grad_residual);
    if (grad_x == nullptr && grad_residual == nullptr) return Status::success();
    const ActivatedGradX<scalar_t> op{{grad_y, x, y},
                                      {grad_x, grad_residual},
                                      p.training && grad_x != nullptr,
                                      mean,
                                      invstd,
                                      coefficients,
                                      ActivationGradient<scalar_t>(p.activation)};
    return map_channels("batch_norm_activated_grad_x", op, shape, stream);
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
  CoefficientArrays<BatchNormDoubleBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void operator()(int64_t c, const Sums<acc_t, 5>& sums) const {
    const BatchNormDoubleBackwardSums<acc_t> sum{sums.v[0], sums.v[1], sums.v[2], sums.v[3], sums.v[4]};
    const auto k =
        batch_norm_double_backward_coefficients(training, static_cast<acc_t>(count), weight.get(c, 1),
                                                invstd[c], gg_weight.get(c, 0), gg_bias.get(c, 0), sum);
    d_weight.set(c, k.d_weight);
    coefficients.set(c, k);
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
  CoefficientArrays<BatchNormDoubleBackwardCoefficients<acc_t>, acc_t> coefficients;

  __device__ __forceinline__ void on_first_thread() const {}
  __device__ __forceinline__ Channel channel(int64_t c) const {
    return {{mean[c], invstd[c]}, coefficients.get(c)};
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
  const CoefficientArrays<Coefficients, acc_t> coefficients{static_cast<acc_t*>(p.workspace), shape.C};
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
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    using acc_t = acc_type<typename decltype(tag)::type>;
    bytes = forward_values<acc_t>(p) * static_cast<int64_t>(sizeof(acc_t));
    return Status::success();
  });
  return bytes + (p.training ? reduction_workspace<Statistics>(p.dtype, p.shape) : 0);
}

Status batch_norm_apply(const BatchNormApplyParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return apply<typename decltype(tag)::type>(p, stream); });
}

Status batch_norm_backward(const BatchNormBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(p, stream); });
}

int64_t batch_norm_backward_workspace(const BatchNormBackwardParams& p) {
  const int64_t sums = p.activation.kind == Activation::kNone
                           ? reduction_workspace<BackwardSums>(p.dtype, p.shape)
                           : reduction_workspace<ActivatedBackwardSums>(p.dtype, p.shape);
  return coefficient_workspace<BatchNormBackwardCoefficients>(p.shape) + sums;
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
