// Group and instance normalisation; formulas in ops/group_norm.h.
//
// The passes are batch normalisation's (channels.cuh, channels_two_pass.cuh), over channels that are each one
// sample's:
//
//   forward    statistics: with channels first of the N * G groups, each one run of memory; with channels
//              last of the N * C channels, whose moments a warp a group then combines. Then the map.
//   backward   two sums of each of the N * C channels; a warp a group makes coefficients of them; the map.
//              Where the parameters' gradients are wanted a thread a channel adds the samples' sums.
//
// Bound by memory, elements a value, read + written: forward 2 + 1, backward 4 + 1, of which what the L2 still
// holds is not read from memory again.
#include <cstdint>

#include "../ops/group_norm.h"
#include "batch_norm_statistics.cuh"
#include "channels_two_pass.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// A warp a group, several in a block.
constexpr int kGroupWarps = 4;
constexpr int kParameterThreads = 128;

// Which group a channel of a sample is in, and which parameters are its.
struct Groups {
  int64_t C, G, K;  // K: channels of a group
  Divisor by_C, by_K;

  explicit Groups(const GroupNormShape& s)
      : C(s.C), G(s.G), K(s.group_channels()), by_C(s.C, s.N * s.C), by_K(s.group_channels(), s.C) {}

  struct Place {
    int64_t c, group;
  };
  __device__ __forceinline__ Place place(int64_t channel) const {
    int64_t c = channel;
    const int64_t n = by_C.take(c);
    return {c, n * G + by_K.divide(c)};
  }
};

// The tensor, with each sample's channels apart, or each sample's groups.
struct Shapes {
  bool rows;
  ChannelShape channels, moments;

  explicit Shapes(const GroupNormShape& s)
      // Without positions, or with one channel, both layouts are the same.
      : rows(s.layout == Layout::kChannelsLast && s.S > 1 && s.C > 1),
        channels(rows ? Layout::kChannelsLast : Layout::kChannelsFirst, 1, rows ? s.C : s.N * s.C, s.S),
        moments(rows ? channels : ChannelShape(Layout::kChannelsFirst, 1, s.N * s.G, s.group_values())) {
    if (rows) channels.samples = moments.samples = s.N;
  }
};

// From the moments of a group to what forward keeps of it.
template <typename scalar_t>
struct FinishGroup {
  using acc_t = acc_type<scalar_t>;
  acc_t eps, count;
  acc_t *mean, *invstd;
  acc_t* unbiased;  // null where no running statistic is kept

  __device__ __forceinline__ void set(int64_t group, acc_t mean_of, acc_t m2) const {
    mean[group] = mean_of;
    invstd[group] = inverse_std(m2 / count, eps);
    if (unbiased != nullptr) unbiased[group] = m2 / (count - acc_t(1));
  }
};

// Channels first: the moments are the group's, seen from its first value.
template <typename scalar_t>
struct FinishRun {
  using acc_t = acc_type<scalar_t>;
  Shift<scalar_t> origin;
  FinishGroup<scalar_t> finish;
  __device__ __forceinline__ void operator()(int64_t group, const Moments<acc_t>& m) const {
    finish.set(group, origin.get(group) + m.mean, m.m2);
  }
};

// Channels last: a channel's are kept, to be combined.
template <typename scalar_t>
struct KeepMoments {
  using acc_t = acc_type<scalar_t>;
  Shift<scalar_t> origin;
  ColumnArrays<Moments<acc_t>> kept;
  __device__ __forceinline__ void operator()(int64_t channel, const Moments<acc_t>& m) const {
    kept.set(0, channel, Moments<acc_t>{m.count, origin.get(channel) + m.mean, m.m2});
  }
};

template <typename scalar_t>
__global__ void __launch_bounds__(kGroupWarps* kWarpSize, 1)
    group_norm_combine_kernel(FinishGroup<scalar_t> finish, ColumnArrays<Moments<acc_type<scalar_t>>> kept,
                              int64_t groups, int64_t K) {
  using acc_t = acc_type<scalar_t>;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kGroupWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (group >= groups) return;
  Moments<acc_t> total{};
  for (int64_t k = lane; k < K; k += kWarpSize) total = combine(total, kept.get(0, group * K + k));
  total = warp_reduce(total);
  if (lane == 0) finish.set(group, total.mean, total.m2);
}

template <typename scalar_t_>
struct NormaliseGroups {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Channel = NormaliseChannel<acc_t>;
  static constexpr int kInputs = 1, kOutputs = 1;
  static constexpr bool kSamples = true;

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  Groups groups;
  ParamReader<scalar_t> weight, bias;
  const acc_t *mean, *invstd;

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t channel) const {
    const auto [c, group] = groups.place(channel);
    return {mean[group], weight.get(c, 1) * invstd[group], bias.get(c, 0)};
  }
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[1], acc_t (&out)[1]) const {
    out[0] = k.z(in[0]);
  }
};

// running = (1 - momentum) * running + momentum * average over the samples.
template <typename scalar_t>
__global__ void __launch_bounds__(kParameterThreads, 1)
    group_norm_running_kernel(const acc_type<scalar_t>* of_samples, ParamReader<scalar_t> old,
                              ParamWriter<scalar_t> running, acc_type<scalar_t> momentum, int64_t N,
                              int64_t C) {
  using acc_t = acc_type<scalar_t>;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kParameterThreads + threadIdx.x;
  if (c >= C) return;
  acc_t total = 0;
  for (int64_t n = 0; n < N; ++n) total += of_samples[n * C + c];
  running.set(c, (acc_t(1) - momentum) * old.get(c, 0) + momentum * (total / static_cast<acc_t>(N)));
}

// ---- backward ---------------------------------------------------------------------------------------------

template <typename scalar_t_>
struct GroupSums {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  using Channel = Normaliser<acc_t>;
  using State = Sums<acc_t, 2>;
  using Partial = State;
  static constexpr int kInputs = 2;  // grad_y, x
  struct Step {};

  const scalar_t* input[kInputs];
  Groups groups;
  const acc_t *mean, *invstd;

  __device__ __forceinline__ Channel channel(int64_t channel) const {
    const int64_t group = groups.place(channel).group;
    return {mean[group], invstd[group]};
  }
  __device__ __forceinline__ Step step(int64_t, int) const { return {}; }
  __device__ __forceinline__ Partial partial(const State& state, int64_t) const { return state; }
  template <int kCount>
  __device__ __forceinline__ void add(State& sums, const Channel& channel, const acc_t (&values)[2][kCount],
                                      const Step&) const {
    add_gradients(sums, channel, values);
  }
};

template <typename acc_t>
struct KeepSums {
  ColumnArrays<Sums<acc_t, 2>> kept;
  __device__ __forceinline__ void operator()(int64_t channel, const Sums<acc_t, 2>& sums) const {
    kept.set(0, channel, sums);
  }
};

// coefficients[group]: -sum(h) / D and -sum(h * xhat) / D.
template <typename scalar_t>
__global__ void __launch_bounds__(kGroupWarps* kWarpSize, 1)
    group_norm_coefficients_kernel(ColumnArrays<Sums<acc_type<scalar_t>, 2>> kept, ParamReader<scalar_t> weight,
                                   ColumnArrays<Sums<acc_type<scalar_t>, 2>> coefficients, int64_t groups,
                                   int64_t G, int64_t K, acc_type<scalar_t> count) {
  using acc_t = acc_type<scalar_t>;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kGroupWarps + threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  if (group >= groups) return;
  Sums<acc_t, 2> total{};
  for (int64_t k = lane; k < K; k += kWarpSize) {
    const acc_t w = weight.get(group % G * K + k, 1);
    const auto sums = kept.get(0, group * K + k);
    total = combine(total, Sums<acc_t, 2>{w * sums.v[0], w * sums.v[1]});
  }
  total = warp_reduce(total);
  if (lane == 0) coefficients.set(0, group, Sums<acc_t, 2>{-total.v[0] / count, -total.v[1] / count});
}

template <typename scalar_t>
__global__ void __launch_bounds__(kParameterThreads, 1)
    group_norm_parameters_kernel(ColumnArrays<Sums<acc_type<scalar_t>, 2>> kept,
                                 ParamWriter<scalar_t> grad_weight, ParamWriter<scalar_t> grad_bias, int64_t N,
                                 int64_t C) {
  using acc_t = acc_type<scalar_t>;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kParameterThreads + threadIdx.x;
  if (c >= C) return;
  Sums<acc_t, 2> total{};
  for (int64_t n = 0; n < N; ++n) total = combine(total, kept.get(0, n * C + c));
  grad_bias.set(c, total.v[0]);
  grad_weight.set(c, total.v[1]);
}

template <typename scalar_t_>
struct GroupGradX {
  using scalar_t = scalar_t_;
  using acc_t = acc_type<scalar_t>;
  static constexpr int kInputs = 2, kOutputs = 1;  // grad_y, x
  static constexpr bool kSamples = true;
  struct Channel {
    Normaliser<acc_t> x;
    acc_t weight, offset, slope;
  };

  const scalar_t* input[kInputs];
  scalar_t* output[kOutputs];
  Groups groups;
  ParamReader<scalar_t> weight;
  const acc_t *mean, *invstd;
  ColumnArrays<Sums<acc_t, 2>> coefficients;

  __device__ __forceinline__ void begin(int64_t, int64_t) const {}
  __device__ __forceinline__ Channel channel(int64_t channel) const {
    const auto [c, group] = groups.place(channel);
    const auto k = coefficients.get(0, group);
    return {{mean[group], invstd[group]}, weight.get(c, 1), k.v[0], k.v[1]};
  }
  // The sums are taken away before the multiplication that would round what is left of close numbers.
  __device__ __forceinline__ void apply(const Channel& k, const acc_t (&in)[2], acc_t (&out)[1]) const {
    out[0] = ((in[0] * k.weight + k.offset) + k.x.xhat(in[1]) * k.slope) * k.x.invstd;
  }
};

// ---- launchers --------------------------------------------------------------------------------------------

int64_t padded(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

template <typename acc_t>
int64_t kept_bytes(const GroupNormForwardParams& p) {  // channels' moments, then variances
  const Shapes shapes(p.shape);
  const int64_t moments = shapes.rows ? ColumnArrays<Moments<acc_t>>::bytes(1, p.shape.N * p.shape.C) : 0;
  const int64_t variances = p.running_var != nullptr ? p.shape.N * p.shape.G * int64_t{sizeof(acc_t)} : 0;
  return padded(moments) + padded(variances);
}

template <typename scalar_t>
Status forward(const GroupNormForwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const GroupNormShape& s = p.shape;
  const Shapes shapes(s);
  const auto* x = static_cast<const scalar_t*>(p.x);
  auto* memory = static_cast<unsigned char*>(p.workspace);
  const ColumnArrays<Moments<acc_t>> kept{reinterpret_cast<acc_t*>(memory), s.N * s.C};
  acc_t* const unbiased =
      p.running_var == nullptr
          ? nullptr
          : reinterpret_cast<acc_t*>(memory + (shapes.rows ? padded(kept.bytes(1, s.N * s.C)) : 0));
  void* const passes = memory + kept_bytes<acc_t>(p);
  auto *mean = static_cast<acc_t*>(p.mean), *invstd = static_cast<acc_t*>(p.invstd);
  const FinishGroup<scalar_t> finish{static_cast<acc_t>(p.eps), static_cast<acc_t>(s.group_values()), mean,
                                     invstd, unbiased};
  const Shift<scalar_t> origin(x, shapes.moments);
  const Statistics<scalar_t> statistics{{x}, origin};
  Status status;
  if (shapes.rows) {
    status = reduce_channels("group_norm_moments", statistics, KeepMoments<scalar_t>{origin, kept},
                             shapes.moments, passes, stream);
    if (!status.ok()) return status;
    status = launch("group_norm_combine", group_norm_combine_kernel<scalar_t>,
                    dim3(static_cast<unsigned>(ceil_div(s.N * s.G, kGroupWarps))),
                    dim3(kGroupWarps * kWarpSize), 0, stream, finish, kept, s.N * s.G, s.group_channels());
  } else {
    status = reduce_channels("group_norm_statistics", statistics, FinishRun<scalar_t>{origin, finish},
                             shapes.moments, passes, stream);
  }
  if (!status.ok()) return status;
  const NormaliseGroups<scalar_t> map{{x},
                                      {static_cast<scalar_t*>(p.y)},
                                      Groups(s),
                                      {p.weight, p.param_dtype, p.dtype},
                                      {p.bias, p.param_dtype, p.dtype},
                                      mean,
                                      invstd};
  status = map_channels("group_norm_normalise", map, shapes.channels, stream);
  const auto move = [&](const acc_t* of_samples, void* running) {
    if (!status.ok() || running == nullptr) return;
    status = launch("group_norm_running", group_norm_running_kernel<scalar_t>,
                    dim3(static_cast<unsigned>(ceil_div(s.C, kParameterThreads))), dim3(kParameterThreads), 0,
                    stream, of_samples, ParamReader<scalar_t>(running, p.param_dtype, p.dtype),
                    ParamWriter<scalar_t>(running, p.param_dtype, p.dtype), static_cast<acc_t>(p.momentum), s.N,
                    s.C);
  };
  move(mean, p.running_mean);
  move(unbiased, p.running_var);
  return status;
}

// The workspace of backward: sums of the channels, coefficients of the groups, then what the reduction wants.
template <typename acc_t>
int64_t sums_bytes(const GroupNormShape& s) {
  return padded(ColumnArrays<Sums<acc_t, 2>>::bytes(1, s.N * s.C));
}
template <typename acc_t>
int64_t coefficients_bytes(const GroupNormShape& s) {
  return padded(ColumnArrays<Sums<acc_t, 2>>::bytes(1, s.N * s.G));
}

template <typename scalar_t>
Status backward(const GroupNormBackwardParams& p, Stream stream) {
  using acc_t = acc_type<scalar_t>;
  const GroupNormShape& s = p.shape;
  const Shapes shapes(s);
  const auto *grad_y = static_cast<const scalar_t*>(p.grad_y), *x = static_cast<const scalar_t*>(p.x);
  const auto *mean = static_cast<const acc_t*>(p.mean), *invstd = static_cast<const acc_t*>(p.invstd);
  auto* memory = static_cast<unsigned char*>(p.workspace);
  const ColumnArrays<Sums<acc_t, 2>> kept{reinterpret_cast<acc_t*>(memory), s.N * s.C};
  const ColumnArrays<Sums<acc_t, 2>> coefficients{reinterpret_cast<acc_t*>(memory + sums_bytes<acc_t>(s)),
                                                  s.N * s.G};
  void* const passes = memory + sums_bytes<acc_t>(s) + coefficients_bytes<acc_t>(s);
  const ParamReader<scalar_t> weight(p.weight, p.param_dtype, p.dtype);
  const Groups groups(s);
  Status status = reduce_channels("group_norm_sums", GroupSums<scalar_t>{{grad_y, x}, groups, mean, invstd},
                                  KeepSums<acc_t>{kept}, shapes.channels, passes, stream);
  if (status.ok() && p.grad_x != nullptr) {
    status = launch("group_norm_coefficients", group_norm_coefficients_kernel<scalar_t>,
                    dim3(static_cast<unsigned>(ceil_div(s.N * s.G, kGroupWarps))),
                    dim3(kGroupWarps * kWarpSize), 0, stream, kept, weight, coefficients, s.N * s.G, s.G,
                    s.group_channels(), static_cast<acc_t>(s.group_values()));
    if (!status.ok()) return status;
    const GroupGradX<scalar_t> map{
        {grad_y, x}, {static_cast<scalar_t*>(p.grad_x)}, groups, weight, mean, invstd, coefficients};
    status = map_channels("group_norm_grad_x", map, shapes.channels, stream);
  }
  if (!status.ok() || (p.grad_weight == nullptr && p.grad_bias == nullptr)) return status;
  return launch("group_norm_parameters", group_norm_parameters_kernel<scalar_t>,
                dim3(static_cast<unsigned>(ceil_div(s.C, kParameterThreads))), dim3(kParameterThreads), 0,
                stream, kept, ParamWriter<scalar_t>(p.grad_weight, p.param_dtype, p.dtype),
                ParamWriter<scalar_t>(p.grad_bias, p.param_dtype, p.dtype), s.N, s.C);
}

}  // namespace

int64_t group_norm_forward_workspace(const GroupNormForwardParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    bytes = kept_bytes<acc_type<scalar_t>>(p) +
            reduce_channels_workspace<Statistics<scalar_t>>(Shapes(p.shape).moments);
    return Status::success();
  });
  return bytes;
}

int64_t group_norm_backward_workspace(const GroupNormBackwardParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    bytes = sums_bytes<acc_t>(p.shape) + coefficients_bytes<acc_t>(p.shape) +
            reduce_channels_workspace<GroupSums<scalar_t>>(Shapes(p.shape).channels);
    return Status::success();
  });
  return bytes;
}

Status group_norm_forward(const GroupNormForwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return forward<typename decltype(tag)::type>(p, stream); });
}

Status group_norm_backward(const GroupNormBackwardParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(p, stream); });
}

}  // namespace fastnn::cuda
