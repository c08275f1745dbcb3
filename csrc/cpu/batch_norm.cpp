// Batch normalisation on the CPU; formulas in ops/batch_norm.h and ops/batch_norm_math.h.
//
// What bounds it: memory. Each direction reads its inputs once for sums per channel and once more to write the
// result. Elements a value, read + written: forward 2 + 1, backward 4 + 1, double backward 6 + 2. With channels
// first, where a channel's values fit in L2, one thread does both back to back and the second read costs no
// memory traffic: 1 + 1, 2 + 1, 3 + 2. Evaluation takes no sums: 1 + 1 at once.
//
// Sums are taken over chunks whose shape follows from the tensor's alone. A chunk is summed by one thread in
// acc_t and left in the workspace in float64; chunks are combined per channel in ascending order in float64. No
// bits depend on the number of threads, whatever the split.
//   channels first  a chunk is kChunkBytes of one channel: a piece of a row of S values, or whole rows while
//                   S is small. A vector runs along S.
//   channels last   (and every [N, C] input) a chunk is a multiple of kBlockRows of the N * S rows, at most
//                   kMaxRowChunks chunks in all. A vector runs along C; sums in acc_t run over kBlockRows rows,
//                   then go to float64.
//
// Error. Statistics: channels-first chunks stay in L1 and are summed twice, first about the chunk's first
// value and then about that mean, with the correction for the mean's own rounding (Chan, Golub and LeVeque
// 1983), relative error of the variance about (kChunkBytes / 64) / kWays eps; channels-last blocks are summed
// once about their first row, relative error at most about kBlockRows eps, even when that row is an outlier.
// Neither depends on mean / deviation beyond the rounding of x - mean itself, and no sum can overflow before
// its squared deviations do. Backward's sums: at most kChunkBytes / 64 or kBlockRows roundings in acc_t, then
// float64.
#include "../ops/batch_norm.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../ops/batch_norm_math.h"
#include "batch_norm_apply.h"
#include "batch_norm_plan.h"
#include "batch_norm_sums.h"
#include "batch_norm_tiles.h"
#include "batch_norm_walk.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace bn;

// Partial sums of a chunk in forward.
int64_t forward_sums(const BatchNormForwardParams& p) { return p.training ? 2 : 0; }

// y where it holds forward's partial sums, which beside it would be up to 6 % of it; null where the workspace
// does. Rows are all summed, and the sums read, before the first of y is written.
template <typename scalar_t>
void* sums_in_output(const Plan& plan, const BatchNormForwardParams& p) {
  constexpr int64_t kSize = sizeof(scalar_t);
  const int64_t bytes = Workspace<acc_type<scalar_t>>::bytes(plan, forward_sums(p), 0);
  const bool holds = plan.rows && bytes <= plan.values() * plan.C * kSize &&
                     reinterpret_cast<uintptr_t>(p.y) % alignof(double) == 0;
  return holds ? p.y : nullptr;
}

// What training does to the running statistics.
class RunningStatistics {
 public:
  RunningStatistics(const BatchNormForwardParams& p, int64_t C, double factor) : p_(p), C_(C), factor_(factor) {
    if (p.training && p.skip_nonfinite && (p.running_mean != nullptr || p.num_batches_tracked != nullptr))
      held_back_.resize(2 * C);
  }

  // Of channels c + i, of this batch's.
  void move(int64_t c, int64_t count, const Tile& means, const Tile& vars) {
    if (held_back_.empty()) {
      move(p_.running_mean, c, count, means);
      move(p_.running_var, c, count, vars);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite(means[i]) || !std::isfinite(vars[i]))
        nonfinite_.store(true, std::memory_order_relaxed);
    }
    std::copy_n(means, count, held_back_.data() + c);
    std::copy_n(vars, count, held_back_.data() + C_ + c);
  }

  // When every channel has been moved.
  void finish() {
    if (nonfinite_.load(std::memory_order_relaxed)) return;
    if (!held_back_.empty()) {
      for_each_tile(0, C_, [&](int64_t c, int64_t count) {
        Tile means, vars;
        std::copy_n(held_back_.data() + c, count, means);
        std::copy_n(held_back_.data() + C_ + c, count, vars);
        move(p_.running_mean, c, count, means);
        move(p_.running_var, c, count, vars);
      });
    }
    if (p_.num_batches_tracked != nullptr) ++*p_.num_batches_tracked;
  }

 private:
  void move(void* running, int64_t c, int64_t count, const Tile& batch) const {
    if (running == nullptr) return;
    Tile value;
    load_params(running, p_.param_dtype, c, count, 0, value);
    for (int64_t i = 0; i < count; ++i) value[i] = (1 - factor_) * value[i] + factor_ * batch[i];
    store_params(running, p_.param_dtype, c, count, value);
  }

  const BatchNormForwardParams& p_;
  const int64_t C_;
  const double factor_;
  std::vector<double> held_back_;  // means and variances, until all are known to be finite
  std::atomic<bool> nonfinite_{false};
};

// f(policy): what follows the normalisation.
template <typename scalar_t, typename F>
void with_activated(const Plan& plan, const BatchNormActivation& a, const F& f) {
  if (a.kind == Activation::kNone) return f(NoActivation<scalar_t>{});
  f(Activated<scalar_t>(plan, a));
}

// f(policy): the same of its derivative.
template <typename scalar_t, typename F>
void with_activation_gradient(const Plan& plan, const BatchNormActivation& a, const F& f) {
  if (a.kind == Activation::kNone) return f(NoActivation<scalar_t>{});
  f(ActivationGradient<scalar_t>(plan, a));
}

// known: p.mean and the activation's scale and shift are the statistics.
template <typename scalar_t>
void batch_norm_forward_typed(const BatchNormForwardParams& p, bool known = false) {
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Workspace<acc_t> work(p.workspace, plan, forward_sums(p), sums_in_output<scalar_t>(plan, p));
  const scalar_t* x = static_cast<const scalar_t*>(p.x);
  acc_t* mean = static_cast<acc_t*>(p.mean);
  acc_t* invstd = static_cast<acc_t*>(p.invstd);
  // The caller's where they are kept.
  const bool kept = p.activation.scale != nullptr;
  acc_t* scale = kept ? static_cast<acc_t*>(p.activation.scale) : work.coefficients;
  acc_t* shift = kept ? static_cast<acc_t*>(p.activation.shift) : scale + plan.C;
  const double values = static_cast<double>(plan.values());
  const double tracked = p.num_batches_tracked == nullptr ? 0 : static_cast<double>(*p.num_batches_tracked);
  const double factor = p.cumulative ? 1 / (tracked + 1) : p.momentum;

  // The coefficients of channels c + i, of these means and variances.
  const auto coefficients = [&](int64_t c, int64_t count, const Tile& means, const Tile& vars) {
    Tile weight, bias;
    load_params(p.weight, p.param_dtype, c, count, 1, weight);
    load_params(p.bias, p.param_dtype, c, count, 0, bias);
    for (int64_t i = 0; i < count; ++i) {
      const double root = std::sqrt(vars[i] + p.eps);
      mean[c + i] = static_cast<acc_t>(means[i]);
      invstd[c + i] = static_cast<acc_t>(1 / root);
      scale[c + i] = static_cast<acc_t>(weight[i] / root);
      // What rounding took from the mean comes back with the bias.
      const double residual = static_cast<double>(mean[c + i]) - means[i];
      const double moved = residual * static_cast<double>(scale[c + i]);
      shift[c + i] = static_cast<acc_t>(bias[i] + (residual - residual == 0 ? moved : 0));
    }
  };
  RunningStatistics running(p, plan.C, factor);
  const auto from_running = [&](int64_t c_begin, int64_t c_end) {
    for_each_tile(c_begin, c_end, [&](int64_t c, int64_t count) {
      Tile means, vars;
      load_params(p.running_mean, p.param_dtype, c, count, 0, means);
      load_params(p.running_var, p.param_dtype, c, count, 1, vars);
      coefficients(c, count, means, vars);
    });
  };
  const auto from_batch = [&](int64_t c_begin, int64_t c_end) {
    if (!p.training) return;
    for_each_tile(c_begin, c_end, [&](int64_t c, int64_t count) {
      Tile means, m2, vars;
      combined_moments(work, c, count, means, m2);
      for (int64_t i = 0; i < count; ++i) {
        means[i] = origin(plan, x, c + i) + means[i];
        vars[i] = m2[i] / values;
      }
      coefficients(c, count, means, vars);
      for (int64_t i = 0; i < count; ++i) vars[i] = m2[i] / (values - 1);
      running.move(c, count, means, vars);
    });
  };
  const auto moments = [&](int64_t i, int64_t c_begin, int64_t c_end) {
    if (plan.rows) {
      row_moments(work, x, i, c_begin, c_end);
    } else {
      plane_moments(work, x, i, c_begin, c_end);
    }
  };
  const auto prepare = [&](int64_t c_begin, int64_t c_end) {
    if (!p.training && !known) from_running(c_begin, c_end);
  };
  // One walk for training, evaluation and known statistics: most of this file's code, it is compiled once.
  with_activated<scalar_t>(plan, p.activation, [&](const auto& act) {
    const Affine<scalar_t, kX | kOne, std::decay_t<decltype(act)>> output{
        nullptr, nullptr, x, static_cast<scalar_t*>(p.y), nullptr, nullptr, mean, scale, shift, nullptr, act};
    walk<scalar_t>(plan, 2, p.training, prepare, moments, from_batch, output);
  });
  if (p.training) running.finish();
}

template <typename scalar_t>
void batch_norm_apply_typed(const BatchNormApplyParams& p) {
  if (p.grad_y == nullptr) {
    BatchNormForwardParams forward{};
    forward.dtype = p.dtype;
    forward.shape = p.shape;
    forward.x = p.x;
    forward.mean = const_cast<void*>(p.mean);
    forward.activation = p.activation;
    forward.y = p.out;
    return batch_norm_forward_typed<scalar_t>(forward, /*known=*/true);
  }
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Affine<scalar_t, kUnitGy | kCentred, ActivationGradient<scalar_t>> output{
      nullptr,
      static_cast<const scalar_t*>(p.grad_y),
      static_cast<const scalar_t*>(p.x),
      static_cast<scalar_t*>(p.out),
      nullptr,
      nullptr,
      static_cast<const acc_t*>(p.mean),
      nullptr,
      nullptr,
      nullptr,
      ActivationGradient<scalar_t>(plan, p.activation)};
  walk<scalar_t>(plan, 2, false, Nothing{}, Nothing{}, Nothing{}, output);
}

// Leaves the partial sums of terms.
template <typename Work, typename Terms>
auto reducing(const Work& work, const Terms& terms) {
  return [&work, terms](int64_t i, int64_t c_begin, int64_t c_end) {
    if (work.plan.rows) {
      row_sums(work, terms, i, c_begin, c_end);
    } else {
      plane_sums(work, terms, i, c_begin, c_end);
    }
  };
}

template <typename scalar_t>
void batch_norm_backward_typed(const BatchNormBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Workspace<acc_t> work(p.workspace, plan, p.training ? 3 : 2);
  const scalar_t* gy = static_cast<const scalar_t*>(p.grad_y);
  const scalar_t* x = static_cast<const scalar_t*>(p.x);
  scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x);
  const acc_t* mean = static_cast<const acc_t*>(p.mean);
  const acc_t* invstd = static_cast<const acc_t*>(p.invstd);
  acc_t* k_out = work.coefficients;
  acc_t* k_x = k_out + plan.C;
  acc_t* k_one = k_x + plan.C;
  const double values = static_cast<double>(plan.values());

  const auto finish = [&](int64_t c_begin, int64_t c_end) {
    for_each_tile(c_begin, c_end, [&](int64_t c, int64_t count) {
      Tile sum_gy, sum_gy_xhat, residual;
      total_of(work, 0, c, count, sum_gy);
      total_of(work, 1, c, count, sum_gy_xhat);
      // In training, what rounding took from the saved mean: x - mean should have the sum 0. With few values a
      // channel the gradient is what two large terms leave, and this would be most of its error.
      std::fill(residual, residual + count, 0.0);
      if (p.training) {
        total_of(work, 2, c, count, residual);
        for (int64_t i = 0; i < count; ++i)
          residual[i] = residual[i] - residual[i] == 0 ? residual[i] / values : 0;
      }
      for (int64_t i = 0; i < count; ++i) {
        sum_gy_xhat[i] = (sum_gy_xhat[i] - residual[i] * sum_gy[i]) * static_cast<double>(invstd[c + i]);
      }
      store_params(p.grad_bias, p.param_dtype, c, count, sum_gy);
      store_params(p.grad_weight, p.param_dtype, c, count, sum_gy_xhat);
      if (!p.training || grad_x == nullptr) return;
      Tile weight;
      load_params(p.weight, p.param_dtype, c, count, 1, weight);
      for (int64_t i = 0; i < count; ++i) {
        const double invstd_c = invstd[c + i];
        const auto k = batch_norm_backward_coefficients<double>(true, values, weight[i], invstd_c, sum_gy[i],
                                                                sum_gy_xhat[i]);
        k_out[c + i] = static_cast<acc_t>(k.scale);
        k_x[c + i] = static_cast<acc_t>(k.slope * invstd_c);
        k_one[c + i] = static_cast<acc_t>(k.offset - residual[i] * k.slope * invstd_c);
      }
    });
  };
  scalar_t* grad_residual = static_cast<scalar_t*>(p.grad_residual);
  if (p.training) {
    return with_activation_gradient<scalar_t>(plan, p.activation, [&](const auto& act) {
      using Act = std::decay_t<decltype(act)>;
      walk<scalar_t>(plan, 3, true, Nothing{},
                     reducing(work, GradientTerms<scalar_t, Act>{gy, x, mean, act, grad_residual}), finish,
                     Affine<scalar_t, kUnitGy | kX | kOne | kOut, Act>{nullptr, gy, x, grad_x, nullptr, nullptr,
                                                                       mean, k_x, k_one, k_out, act});
    });
  }
  const auto scales = [&](int64_t c_begin, int64_t c_end) {
    for_each_tile(c_begin, c_end, [&](int64_t c, int64_t count) {
      Tile weight;
      load_params(p.weight, p.param_dtype, c, count, 1, weight);
      for (int64_t i = 0; i < count; ++i) {
        k_out[c + i] = static_cast<acc_t>(weight[i] * static_cast<double>(invstd[c + i]));
      }
    });
  };
  if (p.grad_weight == nullptr && p.grad_bias == nullptr && p.activation.kind == Activation::kNone) {
    // x has no part in grad_x: an infinity in it must not turn into 0 * inf.
    return walk<scalar_t>(plan, 2, false, scales, Nothing{}, Nothing{},
                          Affine<scalar_t, kUnitGy | kOut>{nullptr, gy, nullptr, grad_x, nullptr, nullptr,
                                                           nullptr, nullptr, nullptr, k_out});
  }
  const auto evaluate = [&](const auto& act, auto around_cache) {
    const EvaluationGradientTerms<scalar_t, decltype(around_cache)::value, std::decay_t<decltype(act)>> terms{
        gy, x, mean, k_out, grad_x, act, grad_residual};
    const auto reduce = reducing(work, terms);
    walk<scalar_t>(
        plan, 3, true, scales,
        [&](int64_t i, int64_t c_begin, int64_t c_end) {
          reduce(i, c_begin, c_end);
          if constexpr (decltype(around_cache)::value) end_stream();
        },
        finish);
  };
  if (p.activation.kind != Activation::kNone) {
    evaluate(ActivationGradient<scalar_t>(plan, p.activation), std::false_type{});
  } else if (grad_x != nullptr && stores_around_cache(plan, grad_x)) {
    evaluate(NoActivation<scalar_t>{}, std::true_type{});
  } else {
    evaluate(NoActivation<scalar_t>{}, std::false_type{});
  }
}

template <typename scalar_t>
void batch_norm_double_backward_typed(const BatchNormDoubleBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Workspace<acc_t> work(p.workspace, plan, 5);
  const scalar_t* gx = static_cast<const scalar_t*>(p.gg_x);
  const scalar_t* gy = static_cast<const scalar_t*>(p.grad_y);
  const scalar_t* x = static_cast<const scalar_t*>(p.x);
  const acc_t* mean = static_cast<const acc_t*>(p.mean);
  const acc_t* invstd = static_cast<const acc_t*>(p.invstd);
  acc_t* k[7];
  for (int i = 0; i < 7; ++i) k[i] = work.coefficients + i * plan.C;
  const bool reduces = p.training || p.d_weight != nullptr;
  const double values = static_cast<double>(plan.values());

  const auto finish = [&](int64_t c_begin, int64_t c_end) {
    for_each_tile(c_begin, c_end, [&](int64_t c, int64_t count) {
      Tile sums[5], weight, gg_weight, gg_bias, d_weight;
      for (int s = 0; s < 5; ++s) {
        std::fill(sums[s], sums[s] + count, 0.0);
        if (reduces) total_of(work, s, c, count, sums[s]);
      }
      load_params(p.weight, p.param_dtype, c, count, 1, weight);
      load_params(p.gg_weight, p.param_dtype, c, count, 0, gg_weight);
      load_params(p.gg_bias, p.param_dtype, c, count, 0, gg_bias);
      for (int64_t i = 0; i < count; ++i) {
        const double invstd_c = invstd[c + i];
        const auto result = batch_norm_double_backward_coefficients<double>(
            p.training, values, weight[i], invstd_c, gg_weight[i], gg_bias[i],
            {sums[0][i], sums[1][i], sums[2][i] * invstd_c, sums[3][i] * invstd_c, sums[4][i]});
        d_weight[i] = result.d_weight;
        const double coefficients[7] = {result.y_gx, result.y_xhat * invstd_c, result.y_one, result.x_gx,
                                        result.x_gy, result.x_xhat * invstd_c, result.x_one};
        for (int j = 0; j < 7; ++j) k[j][c + i] = static_cast<acc_t>(coefficients[j]);
      }
      store_params(p.d_weight, p.param_dtype, c, count, d_weight);
    });
  };
  // Terms whose factor is 0 by definition are left out, so that an infinity cannot turn into 0 * inf.
  const bool through_weight = p.training || p.gg_weight != nullptr;
  walk<scalar_t>(
      plan, 5, reduces, Nothing{}, reducing(work, DoubleBackwardTerms<scalar_t>{gx, gy, x, mean}), finish,
      Affine<scalar_t, kGx | kX | kOne | kOptional>{gx, nullptr, through_weight ? x : nullptr,
                                                    static_cast<scalar_t*>(p.d_grad_y), k[0], nullptr, mean,
                                                    k[1], k[2], nullptr},
      Affine<scalar_t, kGx | kGy | kX | kOne | kOptional>{
          p.training ? gx : nullptr, through_weight ? gy : nullptr, p.training ? x : nullptr,
          static_cast<scalar_t*>(p.d_x), k[3], k[4], mean, k[5], p.training ? k[6] : nullptr, nullptr});
}

// Bytes for `sums` partial sums a chunk and `coefficients` a channel.
int64_t workspace_bytes(DType dtype, const BatchNormShape& shape, int64_t sums, int64_t coefficients) {
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto scalar) {
    using acc_t = acc_type<typename decltype(scalar)::type>;
    bytes = Workspace<acc_t>::bytes(Plan::make<acc_t>(shape), sums, coefficients);
    return Status::success();
  });
  return bytes;
}

}  // namespace

int64_t batch_norm_forward_workspace(const BatchNormForwardParams& p) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    using acc_t = acc_type<scalar_t>;
    const Plan plan = Plan::make<acc_t>(p.shape);
    const bool elsewhere = sums_in_output<scalar_t>(plan, p) != nullptr;
    bytes =
        Workspace<acc_t>::bytes(plan, elsewhere ? 0 : forward_sums(p), p.activation.scale != nullptr ? 0 : 2);
    return Status::success();
  });
  return bytes;
}

int64_t batch_norm_backward_workspace(const BatchNormBackwardParams& p) {
  return workspace_bytes(p.dtype, p.shape, 3, 3);
}

int64_t batch_norm_double_backward_workspace(const BatchNormDoubleBackwardParams& p) {
  return workspace_bytes(p.dtype, p.shape, 5, 7);
}

Status batch_norm_forward(const BatchNormForwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    batch_norm_forward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status batch_norm_apply(const BatchNormApplyParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    batch_norm_apply_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status batch_norm_backward(const BatchNormBackwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    batch_norm_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status batch_norm_double_backward(const BatchNormDoubleBackwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    batch_norm_double_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
