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
#include <cmath>

#include "../ops/batch_norm_math.h"
#include "batch_norm_plan.h"
#include "batch_norm_sums.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace bn;

// Bytes of one channel that one thread may read twice: half of a typical L2.
constexpr int64_t kFusedBytes = 512 * 1024;
// Values below which a task stays in the calling thread: about 10 us, what waking the pool costs.
constexpr int64_t kGrainElements = 16 * 1024;
// Values of one row that one task writes, so that few long rows still occupy every thread.
constexpr int64_t kPieceElements = 16 * 1024;

int64_t grain(int64_t elements_per_task) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_task));
}

double load_param(const void* values, DType dtype, int64_t c, double missing) {
  if (values == nullptr) return missing;
  switch (dtype) {
    case DType::kFloat64:
      return static_cast<const double*>(values)[c];
    case DType::kFloat32:
      return static_cast<const float*>(values)[c];
    case DType::kBFloat16:
      return static_cast<float>(static_cast<const c10::BFloat16*>(values)[c]);
    case DType::kFloat16:
      return static_cast<float>(static_cast<const c10::Half*>(values)[c]);
  }
  return missing;
}

void store_param(void* values, DType dtype, int64_t c, double value) {
  if (values == nullptr) return;
  switch (dtype) {
    case DType::kFloat64:
      static_cast<double*>(values)[c] = value;
      break;
    case DType::kFloat32:
      static_cast<float*>(values)[c] = static_cast<float>(value);
      break;
    case DType::kBFloat16:
      static_cast<c10::BFloat16*>(values)[c] = c10::BFloat16(static_cast<float>(value));
      break;
    case DType::kFloat16:
      static_cast<c10::Half*>(values)[c] = c10::Half(static_cast<float>(value));
      break;
  }
}

// ---- the last pass ----

// The terms of an Affine, known when compiled: a test a vector would cost more than its arithmetic.
enum Terms : unsigned {
  kGx = 1,         // gx * k_gx
  kGy = 2,         // gy * k_gy
  kUnitGy = 4,     // gy
  kX = 8,          // (x - mean) * k_x
  kOne = 16,       // k_one
  kOut = 32,       // the sum of the others is multiplied by k_out
  kOptional = 64,  // terms whose tensor or coefficient is null are left out: tested for each vector
};

// out = (k_one + gx * k_gx + gy * k_gy + (x - mean) * k_x) * k_out, coefficients per channel.
template <typename scalar_t, unsigned kTerms>
struct Affine {
  using acc_t = acc_type<scalar_t>;
  using V = Vec<acc_t>;

  Tensors<scalar_t> in;
  scalar_t* out;
  const acc_t *k_gx, *k_gy, *mean, *k_x, *k_one, *k_out;  // [C]

  // [begin, end) of channel c, channels first.
  void plane(int64_t c, int64_t begin, int64_t end) const {
    const Coefficients k = coefficients([c](const acc_t* values) { return V(values[c]); });
    for_each_vector<acc_t>(begin, end, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      store_acc(out + i, value(i, count, k), count);
    });
  }

  // Rows [begin, end) of C channels.
  void rows(int64_t C, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      for_each_vector<acc_t>(0, C, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
        const Coefficients k = coefficients(
            [&](const acc_t* values) __attribute__((always_inline)) { return load_acc(values + c, count); });
        store_acc(out + row * C + c, value(row * C + c, count, k), count);
      });
    }
  }

 private:
  struct Coefficients {
    V gx, gy, mean, x, one, out;
  };

  template <unsigned kTerm>
  bool has(const void* pointer) const {
    return (kTerms & kTerm) != 0 && ((kTerms & kOptional) == 0 || pointer != nullptr);
  }

  template <typename Load>
  __attribute__((always_inline)) Coefficients coefficients(const Load& load) const {
    Coefficients k;
    if (has<kGx>(in.gx)) k.gx = load(k_gx);
    if (has<kGy>(in.gy)) k.gy = load(k_gy);
    if (has<kX>(in.x)) {
      k.mean = load(mean);
      k.x = load(k_x);
    }
    if (has<kOne>(k_one)) k.one = load(k_one);
    if (has<kOut>(k_out)) k.out = load(k_out);
    return k;
  }

  // gy joins k_one before the rest: in backward they are a gradient and its mean, whose difference is exact
  // when they are close.
  __attribute__((always_inline)) V value(int64_t at, int64_t count, const Coefficients& k) const {
    V sum(0);
    if (has<kOne>(k_one)) sum = k.one;
    if (has<kUnitGy>(in.gy)) sum = sum + load_acc(in.gy + at, count);
    if (has<kGy>(in.gy)) sum = at::vec::fmadd(load_acc(in.gy + at, count), k.gy, sum);
    if (has<kX>(in.x)) sum = at::vec::fmadd(load_acc(in.x + at, count) - k.mean, k.x, sum);
    if (has<kGx>(in.gx)) sum = at::vec::fmadd(load_acc(in.gx + at, count), k.gx, sum);
    if (has<kOut>(k_out)) sum = sum * k.out;
    return sum;
  }
};

// ---- the walk over chunks, channels and values that the three directions share ----

// reduce_plane(c, i) and reduce_rows(chunk, c_begin, c_end) leave partial sums, and are skipped unless
// `reduce`; finish(c) turns a channel's into coefficients; apply(affine...) are the outputs to write, null
// `out` for none.
template <typename scalar_t, typename ReducePlane, typename ReduceRows, typename Finish, typename... Outputs>
void run(const Plan& plan, int64_t tensors_read, bool reduce, const ReducePlane& reduce_plane,
         const ReduceRows& reduce_rows, const Finish& finish, const Outputs&... outputs) {
  const int64_t values = plan.values();
  const bool any_output = ((outputs.out != nullptr) || ...);
  if (plan.rows) {
    if (reduce) {
      const int64_t blocks = ceil_div(plan.C, kChannelBlock);
      parallel_for(plan.chunks * blocks, grain(plan.chunk * std::min(plan.C, kChannelBlock)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t c = task % blocks * kChannelBlock;
                       reduce_rows(task / blocks, c, std::min(c + kChannelBlock, plan.C));
                     }
                   });
    }
    parallel_for(plan.C, grain(8 * plan.chunks), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) call_compiled_once(finish, c);
    });
    if (any_output) {
      parallel_for(plan.N, grain(plan.C), [&](int64_t begin, int64_t end) {
        ((outputs.out == nullptr ? void() : outputs.rows(plan.C, begin, end)), ...);
      });
    }
    return;
  }

  const auto apply = [&](int64_t n, int64_t c, int64_t s_begin, int64_t s_end) {
    const int64_t row = (n * plan.C + c) * plan.S;
    ((outputs.out == nullptr ? void() : outputs.plane(c, row + s_begin, row + s_end)), ...);
  };
  const bool fits = values * tensors_read * static_cast<int64_t>(sizeof(scalar_t)) <= kFusedBytes;
  // Evaluation has nothing to read twice, and goes through memory in order.
  if (reduce && fits && (plan.C >= 2 * at::get_num_threads() || plan.C * values <= kGrainElements)) {
    parallel_for(plan.C, grain(values), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t i = 0; reduce && i < plan.chunks; ++i) call_compiled_once(reduce_plane, c, i);
        call_compiled_once(finish, c);
        for (int64_t n = 0; any_output && n < plan.N; ++n) apply(n, c, 0, plan.S);
      }
    });
    return;
  }
  if (reduce) {
    parallel_for(plan.C * plan.chunks, grain(plan.chunk), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        call_compiled_once(reduce_plane, task / plan.chunks, task % plan.chunks);
    });
  }
  parallel_for(plan.C, grain(8 * plan.chunks), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) call_compiled_once(finish, c);
  });
  if (any_output) {
    const int64_t pieces = ceil_div(plan.S, kPieceElements);
    parallel_for(plan.N * plan.C * pieces, grain(std::min(plan.S, kPieceElements)),
                 [&](int64_t begin, int64_t end) {
                   // Divisions once: rows may be as short as a few values.
                   int64_t piece = begin % pieces, c = begin / pieces % plan.C, n = begin / pieces / plan.C;
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t s = piece * kPieceElements;
                     apply(n, c, s, std::min(s + kPieceElements, plan.S));
                     if (++piece < pieces) continue;
                     piece = 0;
                     if (++c < plan.C) continue;
                     c = 0;
                     ++n;
                   }
                 });
  }
}

template <typename scalar_t>
void batch_norm_forward_typed(const BatchNormForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Workspace<acc_t> workspace(p.workspace, plan, 2);
  const scalar_t* x = static_cast<const scalar_t*>(p.x);
  acc_t* mean = static_cast<acc_t*>(p.mean);
  acc_t* invstd = static_cast<acc_t*>(p.invstd);
  acc_t* scale = workspace.coefficients;
  acc_t* shift = scale + plan.C;
  const double count = static_cast<double>(plan.values());
  const double tracked = p.num_batches_tracked == nullptr ? 0 : static_cast<double>(*p.num_batches_tracked);
  const double factor = p.cumulative ? 1 / (tracked + 1) : p.momentum;

  const auto chunk_count = [&](int64_t i) {
    return static_cast<double>(plan.rows ? std::min(plan.chunk, plan.N - i * plan.chunk)
                                         : ChunkOfChannel(plan, i).count());
  };
  const auto finish = [&](int64_t c) {
    Moments<double> m{0, 0, 0};
    if (p.training) {
      const Partials means(plan, workspace.partials, 2, c, 0), m2s(plan, workspace.partials, 2, c, 1);
      for (int64_t i = 0; i < plan.chunks; ++i) m = combine(m, {chunk_count(i), means[i], m2s[i]});
    } else {
      m.mean = load_param(p.running_mean, p.param_dtype, c, 0);
    }
    const double var = !p.training ? load_param(p.running_var, p.param_dtype, c, 1)
                       : count > 0 ? m.m2 / count
                                   : 0;
    mean[c] = static_cast<acc_t>(m.mean);
    invstd[c] = static_cast<acc_t>(1 / std::sqrt(var + p.eps));
    scale[c] = static_cast<acc_t>(load_param(p.weight, p.param_dtype, c, 1) / std::sqrt(var + p.eps));
    // What rounding took from the mean comes back with the bias.
    const double residual = mean[c] - m.mean;
    shift[c] = static_cast<acc_t>(load_param(p.bias, p.param_dtype, c, 0) +
                                  (std::isfinite(residual) ? residual * static_cast<double>(scale[c]) : 0));
    if (p.training && count > 0) {
      const auto move = [&](void* running, double batch) {
        if (running == nullptr) return;
        const double old = load_param(running, p.param_dtype, c, 0);
        store_param(running, p.param_dtype, c, (1 - factor) * old + factor * batch);
      };
      move(p.running_mean, m.mean);
      move(p.running_var, m.m2 / (count - 1));
    }
  };
  run<scalar_t>(
      plan, 1, p.training,
      [&](int64_t c, int64_t i) {
        const Moments<double> m = chunk_moments(plan, x, c, i);
        double* partial = workspace.partials + (c * plan.chunks + i) * 2;
        partial[0] = m.mean;
        partial[1] = m.m2;
      },
      [&](int64_t chunk, int64_t c_begin, int64_t c_end) {
        row_chunk_moments(plan, x, chunk, c_begin, c_end, workspace.partials);
      },
      finish,
      Affine<scalar_t, kX | kOne>{
          {nullptr, nullptr, x}, static_cast<scalar_t*>(p.y), nullptr, nullptr, mean, scale, shift, nullptr});
  if (p.training && p.num_batches_tracked != nullptr) ++*p.num_batches_tracked;
}

template <typename scalar_t>
void batch_norm_backward_typed(const BatchNormBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Workspace<acc_t> workspace(p.workspace, plan, 3);
  const Tensors<scalar_t> in{nullptr, static_cast<const scalar_t*>(p.grad_y),
                             static_cast<const scalar_t*>(p.x)};
  const acc_t* mean = static_cast<const acc_t*>(p.mean);
  const acc_t* invstd = static_cast<const acc_t*>(p.invstd);
  acc_t* k_out = workspace.coefficients;
  acc_t* k_x = k_out + plan.C;
  acc_t* k_one = k_x + plan.C;
  const bool reduce = p.grad_weight != nullptr || p.grad_bias != nullptr || (p.training && p.grad_x != nullptr);

  const auto finish = [&](int64_t c) {
    const double count = static_cast<double>(std::max<int64_t>(1, plan.values()));
    const double invstd_c = invstd[c];
    double sum_gy = 0, sum_gy_xhat = 0;
    // In training, what rounding took from the saved mean: x - mean should have the sum 0. With few values a
    // channel the gradient is what two large terms leave, and this would be most of its error.
    double residual = 0;
    if (reduce) {
      const auto total = [&](int64_t i) { return Partials(plan, workspace.partials, 3, c, i).sum(); };
      sum_gy = total(0);
      if (p.training && std::isfinite(total(2))) residual = total(2) / count;
      sum_gy_xhat = (total(1) - residual * sum_gy) * invstd_c;
    }
    store_param(p.grad_bias, p.param_dtype, c, sum_gy);
    store_param(p.grad_weight, p.param_dtype, c, sum_gy_xhat);
    const auto k = batch_norm_backward_coefficients<double>(
        p.training, count, load_param(p.weight, p.param_dtype, c, 1), invstd_c, sum_gy, sum_gy_xhat);
    k_out[c] = static_cast<acc_t>(k.scale);
    k_x[c] = static_cast<acc_t>(k.slope * invstd_c);
    k_one[c] = static_cast<acc_t>(k.offset - residual * k.slope * invstd_c);
  };
  const auto run_with = [&](const auto& output) {
    run<scalar_t>(
        plan, 2, reduce,
        [&](int64_t c, int64_t i) {
          chunk_sums<3>(plan, in, mean[c], c, i, workspace.partials + (c * plan.chunks + i) * 3);
        },
        [&](int64_t chunk, int64_t c_begin, int64_t c_end) {
          row_chunk_sums<3>(plan, in, mean, chunk, c_begin, c_end, workspace.partials);
        },
        finish, output);
  };
  scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x);
  if (p.training) {
    run_with(
        Affine<scalar_t, kUnitGy | kX | kOne | kOut>{in, grad_x, nullptr, nullptr, mean, k_x, k_one, k_out});
  } else {
    // x has no part in grad_x: an infinity in it must not turn into 0 * inf.
    run_with(Affine<scalar_t, kUnitGy | kOut>{in, grad_x, nullptr, nullptr, nullptr, nullptr, nullptr, k_out});
  }
}

template <typename scalar_t>
void batch_norm_double_backward_typed(const BatchNormDoubleBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Plan plan = Plan::make<acc_t>(p.shape);
  const Workspace<acc_t> workspace(p.workspace, plan, 5);
  const Tensors<scalar_t> in{static_cast<const scalar_t*>(p.gg_x), static_cast<const scalar_t*>(p.grad_y),
                             static_cast<const scalar_t*>(p.x)};
  const acc_t* mean = static_cast<const acc_t*>(p.mean);
  const acc_t* invstd = static_cast<const acc_t*>(p.invstd);
  acc_t* k[7];
  for (int i = 0; i < 7; ++i) k[i] = workspace.coefficients + i * plan.C;
  const bool reduce = p.training || p.d_weight != nullptr;

  const auto finish = [&](int64_t c) {
    const double invstd_c = invstd[c];
    BatchNormDoubleBackwardSums<double> sum{0, 0, 0, 0, 0};
    if (reduce) {
      const auto total = [&](int64_t i) { return Partials(plan, workspace.partials, 5, c, i).sum(); };
      sum = {total(0), total(1), total(2) * invstd_c, total(3) * invstd_c, total(4)};
    }
    const double count = static_cast<double>(std::max<int64_t>(1, plan.values()));
    const auto result = batch_norm_double_backward_coefficients<double>(
        p.training, count, load_param(p.weight, p.param_dtype, c, 1), invstd_c,
        load_param(p.gg_weight, p.param_dtype, c, 0), load_param(p.gg_bias, p.param_dtype, c, 0), sum);
    store_param(p.d_weight, p.param_dtype, c, result.d_weight);
    const double values[7] = {result.y_gx, result.y_xhat * invstd_c, result.y_one, result.x_gx,
                              result.x_gy, result.x_xhat * invstd_c, result.x_one};
    for (int i = 0; i < 7; ++i) k[i][c] = static_cast<acc_t>(values[i]);
  };
  // Terms whose factor is 0 by definition are left out, so that an infinity cannot turn into 0 * inf.
  const bool through_weight = p.training || p.gg_weight != nullptr;
  run<scalar_t>(
      plan, 3, reduce,
      [&](int64_t c, int64_t i) {
        chunk_sums<5>(plan, in, mean[c], c, i, workspace.partials + (c * plan.chunks + i) * 5);
      },
      [&](int64_t chunk, int64_t c_begin, int64_t c_end) {
        row_chunk_sums<5>(plan, in, mean, chunk, c_begin, c_end, workspace.partials);
      },
      finish,
      Affine<scalar_t, kGx | kX | kOne | kOptional>{{in.gx, nullptr, through_weight ? in.x : nullptr},
                                                    static_cast<scalar_t*>(p.d_grad_y),
                                                    k[0],
                                                    nullptr,
                                                    mean,
                                                    k[1],
                                                    k[2],
                                                    nullptr},
      Affine<scalar_t, kGx | kGy | kX | kOne | kOptional>{
          {p.training ? in.gx : nullptr, through_weight ? in.gy : nullptr, p.training ? in.x : nullptr},
          static_cast<scalar_t*>(p.d_x),
          k[3],
          k[4],
          mean,
          k[5],
          p.training ? k[6] : nullptr,
          nullptr});
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
  return workspace_bytes(p.dtype, p.shape, 2, 2);
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
