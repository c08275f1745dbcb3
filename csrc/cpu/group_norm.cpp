// Group and instance normalisation on the CPU; formulas in ops/group_norm.h.
//
// A sample's group is a small batch normalisation, and the chunks, sums and last pass are batch normalisation's
// (batch_norm_sums.h, batch_norm_apply.h), with their bounds of error. What differs stands here: coefficients
// are by channel, statistics by group.
//
//   channels first  A task is a group of a sample, one run of memory: forward, its statistics are those of
//                   one channel of C / G * S values.
//   channels last   A task is a sample. Statistics are taken by channel, where a vector runs along the
//                   channels, and those of a group's channels combined, which have equally many values.
//
// Memory bounds it: elements a value, read + written, 2 + 1 forward and 4 + 1 backward, where a task fits in L2
// 1 + 1 and 2 + 1. A thread does whole tasks; where there are fewer than threads they share chunks and runs. No
// bits depend on which.
#include "../ops/group_norm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "batch_norm_apply.h"
#include "batch_norm_phases.h"
#include "batch_norm_plan.h"
#include "batch_norm_sums.h"
#include "batch_norm_tiles.h"
#include "cache_hints.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace bn;

enum class Direction { kForward, kBackward };

// Channels of planes so small that a channel's sums wait for each other longer than they take: kStreams
// channels are added up side by side.
constexpr int64_t kSmallPlaneBytes = 2048;
// A task's share of a tensor that L2 holds beside those of two others.
constexpr int64_t kCachedBytes = 256 * 1024;
// Shares of several planes or rows that end before the hardware has seen a stream: the next task's are fetched
// during this one, a part before each of its sums and, so many times, between its units. One plane is a stream.
constexpr int64_t kFetchedBytes = 64 * 1024;
constexpr int64_t kFetchCalls = 16;

// How a tensor is cut into tasks.
template <typename acc_t>
struct Tasks {
  GroupNormShape shape;
  bool rows;                        // a task is a sample with channels last
  int64_t count, channels, groups;  // of a task
  Plan sums;                        // of a task, by channel
  Plan moments;                     // of a task: sums, or all its channels as one

  explicit Tasks(const GroupNormShape& s)
      : shape(s),
        // Without positions, or with one channel, both layouts are the same.
        rows(s.layout == Layout::kChannelsLast && s.S > 1 && s.C > 1),
        count(rows ? s.N : s.N * s.G),
        channels(rows ? s.C : s.group_channels()),
        groups(rows ? s.G : 1),
        sums(Plan::make<acc_t>({rows ? Layout::kChannelsLast : Layout::kChannelsFirst, 1, channels, s.S})),
        moments(rows ? sums : Plan::make<acc_t>({Layout::kChannelsFirst, 1, 1, s.group_values()})) {
    if (!sums.rows && sums.C > 1 && s.S * static_cast<int64_t>(sizeof(acc_t)) <= kSmallPlaneBytes)
      sums.planes = kStreams;
  }

  bool small_planes() const { return sums.planes == kStreams && !sums.rows; }

  int64_t values() const { return channels * shape.S; }  // of a task
  int64_t first(int64_t task) const { return task * values(); }
  int64_t first_channel(int64_t task) const { return rows ? 0 : task % shape.G * channels; }
  int64_t sample(int64_t task) const { return rows ? task : task / shape.G; }
  int64_t shares(int64_t tensors) const { return shares_of(count * values() * tensors); }
  // A thread does all of a task where there are enough of them.
  bool whole(int64_t shares) const { return count >= shares; }
};

// Scratch memory of a task: float64 sums of chunks, numbers by channel, and coefficients.
template <typename acc_t>
struct Slot {
  static constexpr int kNumbers = 3, kCoefficients = 5;
  double* sums;
  double* numbers[kNumbers];
  acc_t* coefficients[kCoefficients];

  static int64_t bytes(const Tasks<acc_t>& tasks, Direction direction) {
    const int64_t doubles = of_chunks(tasks, direction) + kNumbers * tasks.channels;
    return (doubles * 8 + kCoefficients * tasks.channels * static_cast<int64_t>(sizeof(acc_t)) + 63) / 64 * 64;
  }
  Slot(char* memory, const Tasks<acc_t>& tasks, Direction direction) : sums(reinterpret_cast<double*>(memory)) {
    double* next = sums + of_chunks(tasks, direction);
    for (double*& of : numbers) {
      of = next;
      next += tasks.channels;
    }
    acc_t* coefficient = reinterpret_cast<acc_t*>(next);
    for (acc_t*& of : coefficients) {
      of = coefficient;
      coefficient += tasks.channels;
    }
  }

 private:
  static int64_t of_chunks(const Tasks<acc_t>& tasks, Direction direction) {
    return direction == Direction::kForward ? tasks.moments.chunks * 2 * tasks.moments.C
                                            : tasks.sums.chunks * 3 * tasks.sums.C;
  }
};

// What lies before the slots: numbers of all samples, which training's running statistics or the parameters'
// gradients are made of.
int64_t of_samples_bytes(const GroupNormForwardParams& p, int64_t) {
  const bool tracks = p.running_mean != nullptr || p.running_var != nullptr;
  return tracks ? 2 * p.shape.N * p.shape.G * static_cast<int64_t>(sizeof(double)) : 0;
}
int64_t of_samples_bytes(const GroupNormBackwardParams& p, int64_t number_bytes) {
  const bool wanted = p.grad_weight != nullptr || p.grad_bias != nullptr;
  return wanted ? (2 * p.shape.N * p.shape.C * number_bytes + 63) / 64 * 64 : 0;
}

// The tensors of a call, of which each task has a run of memory; null where there is none.
template <int kTensors>
using Tensors = std::array<const void*, kTensors>;

// What a thread will read and write in its next task.
template <int kTensors>
class TasksAhead {
 public:
  TasksAhead(const Tensors<kTensors>& tensors, int64_t task_bytes)
      : tensors_(tensors), task_bytes_(task_bytes) {}

  // By `calls` calls of next() the task after this one is fetched, if there is one before `last`.
  void plan(int64_t task, int64_t last, int64_t calls) {
    for (int i = 0; i < kTensors; ++i) {
      if (tensors_[i] == nullptr) continue;
      const char* const begin = static_cast<const char*>(tensors_[i]) + task * task_bytes_;
      ahead_[i].plan(begin, begin + task_bytes_, begin + std::min<int64_t>(2, last - task) * task_bytes_,
                     calls);
    }
  }
  void next() {
    for (FetchAhead& ahead : ahead_) ahead.next();
  }

 private:
  Tensors<kTensors> tensors_;
  int64_t task_bytes_;
  FetchAhead ahead_[kTensors];
};

// reduce(task, slot, chunk, c_begin, c_end), finish(task, slot) and apply(task, slot, begin, end) for all units
// of a task: channels of planes, or rows. prepare(task, slot) comes before the task's first reduce.
template <typename acc_t, int kTensors, typename Prepare, typename Reduce, typename Finish, typename Apply>
void walk_tasks(const Tasks<acc_t>& tasks, const Plan& reduced, Direction direction,
                const Tensors<kTensors>& tensors, int64_t element_bytes, char* slots, const Prepare& prepare,
                const Reduce& reduce, const Finish& finish, const Apply& apply) {
  const int64_t shares = tasks.shares(kTensors), bytes = Slot<acc_t>::bytes(tasks, direction);
  const int64_t blocks = reduced.groups(), parts = reduced.chunks * blocks,
                units = tasks.sums.rows ? tasks.sums.N : tasks.channels;
  const int64_t task_bytes = tasks.values() * element_bytes;
  const auto part = [&](int64_t task, const Slot<acc_t>& slot, int64_t i) {
    reduce(task, slot, i / blocks, reduced.group_begin(i % blocks), reduced.group_end(i % blocks));
  };
  if (tasks.whole(shares)) {
    run_phases(shares, [&](const Share& share) {
      const Slot<acc_t> slot(slots + share.begin * bytes, tasks, direction);
      TasksAhead<kTensors> ahead(tensors, task_bytes);
      const bool fetched = task_bytes <= kFetchedBytes && units > 1;
      const int64_t last = share.last(tasks.count), step = fetched ? ceil_div(units, kFetchCalls) : units;
      for (int64_t task = share.first(tasks.count); task < last; ++task) {
        if (fetched) ahead.plan(task, last, parts + ceil_div(units, step));
        prepare(task, slot);
        for (int64_t i = 0; i < parts; ++i) {
          ahead.next();
          part(task, slot, i);
        }
        finish(task, slot);
        for (int64_t unit = 0; unit < units; unit += step) {
          ahead.next();
          apply(task, slot, unit, std::min(units, unit + step));
        }
      }
      end_stream();
    });
    return;
  }
  const auto each = [&](const Share& share, int64_t of_task, const auto& f) {
    for (int64_t i = share.first(tasks.count * of_task); i < share.last(tasks.count * of_task); ++i) {
      f(i / of_task, Slot<acc_t>(slots + i / of_task * bytes, tasks, direction), i % of_task);
    }
  };
  run_phases(
      shares,
      [&](const Share& share) {
        each(share, 1, [&](int64_t task, const Slot<acc_t>& slot, int64_t) { prepare(task, slot); });
      },
      [&](const Share& share) { each(share, parts, part); },
      [&](const Share& share) {
        each(share, 1, [&](int64_t task, const Slot<acc_t>& slot, int64_t) { finish(task, slot); });
      },
      [&](const Share& share) {
        for (int64_t task = 0; task < tasks.count; ++task) {
          const Slot<acc_t> slot(slots + task * bytes, tasks, direction);
          apply(task, slot, share.first(units), share.last(units));
        }
        end_stream();
      });
}

// The last pass of units [begin, end): rows, or channels from the last to the first, which the cache still
// holds. Where it holds all of a task the channels go up, so that what is stored is fetched in time.
template <typename acc_t, typename Output>
void apply_units(const Tasks<acc_t>& tasks, const Output& output, bool around_cache, int64_t begin,
                 int64_t end) {
  const auto put = [&](auto around) {
    constexpr bool kAround = decltype(around)::value;
    if (tasks.sums.rows) return output.template rows<kAround>(tasks.channels, begin, end);
    const bool up = tasks.values() * static_cast<int64_t>(sizeof(acc_t)) <= kCachedBytes;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = up ? i : begin + end - 1 - i, at = c * tasks.sums.S;
      if (tasks.small_planes()) {
        output.template short_run<kAround>(c, at, at + tasks.sums.S);
      } else {
        output.template run<kAround>(c, at, at + tasks.sums.S);
      }
    }
  };
  around_cache ? put(std::true_type{}) : put(std::false_type{});
}

template <typename acc_t, typename scalar_t>
bool goes_around_cache(const Tasks<acc_t>& tasks, const scalar_t* out) {
  constexpr int64_t kSize = sizeof(scalar_t);
  const int64_t run = tasks.sums.rows ? tasks.channels : tasks.sums.S;
  return run * kSize % kCacheLine == 0 &&
         streams_output(out, tasks.count * tasks.values() * kSize, kAroundCacheBytes);
}

template <typename scalar_t>
void group_norm_forward_typed(const GroupNormForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Tasks<acc_t> tasks(p.shape);
  const Plan& plan = tasks.moments;
  const scalar_t* const x = static_cast<const scalar_t*>(p.x);
  scalar_t* const y = static_cast<scalar_t*>(p.y);
  acc_t *const mean = static_cast<acc_t*>(p.mean), *const invstd = static_cast<acc_t*>(p.invstd);
  const int64_t of_samples = of_samples_bytes(p, sizeof(acc_t)), groups = p.shape.N * p.shape.G;
  double* const sample_means = of_samples > 0 ? static_cast<double*>(p.workspace) : nullptr;
  const double values = static_cast<double>(p.shape.group_values());
  const int64_t group_channels = p.shape.group_channels();
  const bool around_cache = goes_around_cache(tasks, y);

  const auto reduce = [&](int64_t task, const Slot<acc_t>& slot, int64_t i, int64_t c_begin, int64_t c_end) {
    const Workspace<acc_t> work(slot.sums, plan, 2);
    if (plan.rows) {
      row_moments(work, x + tasks.first(task), i, c_begin, c_end);
    } else {
      plane_moments(work, x + tasks.first(task), i, c_begin, c_end);
    }
  };
  const auto finish = [&](int64_t task, const Slot<acc_t>& slot) {
    const Workspace<acc_t> work(slot.sums, plan, 2);
    double *const means = slot.numbers[0], *const m2 = slot.numbers[1];
    for_each_tile(0, plan.C, [&](int64_t c, int64_t count) {
      Tile mean_of, m2_of;
      combined_moments(work, c, count, mean_of, m2_of);
      for (int64_t i = 0; i < count; ++i) {
        means[c + i] = origin(plan, x + tasks.first(task), c + i) + mean_of[i];
        m2[c + i] = m2_of[i];
      }
    });
    acc_t *const k_mean = slot.coefficients[0], *const scale = slot.coefficients[1];
    acc_t* const shift = slot.coefficients[2];
    const int64_t merged = tasks.rows ? group_channels : 1;  // channels of the sums that make a group
    for (int64_t g = 0; g < tasks.groups; ++g) {
      double group_mean = 0, squares = 0;
      for (int64_t c = g * merged; c < (g + 1) * merged; ++c) group_mean += means[c];
      group_mean /= static_cast<double>(merged);
      for (int64_t c = g * merged; c < (g + 1) * merged; ++c) {
        const double apart = means[c] - group_mean;
        // Of one channel the mean is the group's, infinite or not.
        squares += m2[c] + (merged > 1 ? apart * apart * (values / static_cast<double>(merged)) : 0);
      }
      const double var = squares / values, root = std::sqrt(var + p.eps);
      const int64_t at = task * tasks.groups + g, c_begin = g * group_channels;
      mean[at] = static_cast<acc_t>(group_mean);
      invstd[at] = static_cast<acc_t>(1 / root);
      if (sample_means != nullptr) {
        sample_means[at] = group_mean;
        sample_means[groups + at] = squares / (values - 1);
      }
      // What rounding took from the mean comes back with the bias.
      const double residual = static_cast<double>(mean[at]) - group_mean;
      for_each_tile(c_begin, c_begin + group_channels, [&](int64_t c, int64_t count) {
        Tile weight, bias;
        load_params(p.weight, p.param_dtype, tasks.first_channel(task) + c, count, 1, weight);
        load_params(p.bias, p.param_dtype, tasks.first_channel(task) + c, count, 0, bias);
        for (int64_t i = 0; i < count; ++i) {
          k_mean[c + i] = mean[at];
          scale[c + i] = static_cast<acc_t>(weight[i] / root);
          const double moved = residual * static_cast<double>(scale[c + i]);
          shift[c + i] = static_cast<acc_t>(bias[i] + (residual - residual == 0 ? moved : 0));
        }
      });
    }
  };
  const auto apply = [&](int64_t task, const Slot<acc_t>& slot, int64_t begin, int64_t end) {
    const int64_t at = tasks.first(task);
    const Affine<scalar_t, kX | kOne> output{nullptr,
                                             nullptr,
                                             x + at,
                                             y + at,
                                             nullptr,
                                             nullptr,
                                             slot.coefficients[0],
                                             slot.coefficients[1],
                                             slot.coefficients[2],
                                             nullptr};
    apply_units(tasks, output, around_cache, begin, end);
  };
  walk_tasks<acc_t, 2>(
      tasks, plan, Direction::kForward, {x, around_cache ? nullptr : y}, sizeof(scalar_t),
      static_cast<char*>(p.workspace) + of_samples, [](int64_t, const Slot<acc_t>&) {}, reduce, finish, apply);
  if (sample_means == nullptr) return;
  for_each_tile(0, p.shape.C, [&](int64_t c, int64_t count) {
    for (const auto& [running, of] :
         {std::pair{p.running_mean, sample_means}, {p.running_var, sample_means + groups}}) {
      if (running == nullptr) continue;
      Tile value;
      load_params(running, p.param_dtype, c, count, 0, value);
      for (int64_t i = 0; i < count; ++i) {
        double total = 0;
        for (int64_t n = 0; n < p.shape.N; ++n) total += of[n * p.shape.C + c + i];
        value[i] = (1 - p.momentum) * value[i] + p.momentum * (total / static_cast<double>(p.shape.N));
      }
      store_params(running, p.param_dtype, c, count, value);
    }
  });
}

// What plane_sums() does of kStreams channels from c on that have one mean, but for the third sum: the first of
// them has it of all.
template <typename Terms, typename Work>
void small_plane_sums(const Work& work, const Terms& terms, int64_t c) {
  using V = typename Terms::V;
  using acc_t = typename Terms::acc_t;
  constexpr int64_t W = V::size();
  const int64_t S = work.plan.S, whole = S / W * W;
  const auto k = terms.broadcast(c), last = k.first_lanes(S - whole);
  V sums[kStreams][Terms::kSums];
  for (auto& of_run : sums) std::fill(of_run, of_run + Terms::kSums, V(0));
  for (int64_t j = 0; j < whole; j += W) {
#pragma GCC unroll 4
    for (int run = 0; run < kStreams; ++run) terms.template add<false>(sums[run], (c + run) * S + j, W, k);
  }
  if (whole < S) {
#pragma GCC unroll 4
    for (int run = 0; run < kStreams; ++run)
      terms.template add<false>(sums[run], (c + run) * S + whole, S - whole, last);
  }
  for (int run = 0; run < kStreams; ++run) {
    work.partial(0, 0)[c + run] = static_cast<double>(sum_lanes<acc_t>(sums[run][0]));
    work.partial(0, 1)[c + run] = static_cast<double>(sum_lanes<acc_t>(sums[run][1]));
    work.partial(0, 2)[c + run] = 0;
  }
  const V deviations = (sums[0][2] + sums[1][2]) + (sums[2][2] + sums[3][2]);
  work.partial(0, 2)[c] = static_cast<double>(sum_lanes<acc_t>(deviations));
}

template <typename scalar_t>
void group_norm_backward_typed(const GroupNormBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const Tasks<acc_t> tasks(p.shape);
  const Plan& plan = tasks.sums;
  const scalar_t *const gy = static_cast<const scalar_t*>(p.grad_y), *const x =
                                                                         static_cast<const scalar_t*>(p.x);
  scalar_t* const grad_x = static_cast<scalar_t*>(p.grad_x);
  const acc_t *const mean = static_cast<const acc_t*>(p.mean), *const invstd =
                                                                   static_cast<const acc_t*>(p.invstd);
  const int64_t of_samples = of_samples_bytes(p, sizeof(acc_t));
  acc_t* const sample_sums = of_samples > 0 ? static_cast<acc_t*>(p.workspace) : nullptr;  // [2, N, C]
  const double values = static_cast<double>(p.shape.group_values());
  const int64_t group_channels = p.shape.group_channels(), C = p.shape.C;
  const bool around_cache = goes_around_cache(tasks, grad_x);

  const auto prepare = [&](int64_t task, const Slot<acc_t>& slot) {
    for (int64_t g = 0; g < tasks.groups; ++g) {
      std::fill_n(slot.coefficients[0] + g * group_channels, group_channels, mean[task * tasks.groups + g]);
    }
  };
  const auto reduce = [&](int64_t task, const Slot<acc_t>& slot, int64_t i, int64_t c_begin, int64_t c_end) {
    const Workspace<acc_t> work(slot.sums, plan, 3);
    const int64_t at = tasks.first(task);
    const GradientTerms<scalar_t, NoActivation<scalar_t>> terms{
        gy + at, x + at, slot.coefficients[0], {}, nullptr};
    if (plan.rows) {
      row_sums(work, terms, i, c_begin, c_end);
    } else if (tasks.small_planes() && c_end - c_begin == kStreams) {
      small_plane_sums(work, terms, c_begin);
    } else {
      plane_sums(work, terms, i, c_begin, c_end);
    }
  };
  const auto finish = [&](int64_t task, const Slot<acc_t>& slot) {
    const Workspace<acc_t> work(slot.sums, plan, 3);
    double *const sum_gy = slot.numbers[0], *const sum_gy_d = slot.numbers[1], *const weights = slot.numbers[2];
    const int64_t n = tasks.sample(task), first_channel = tasks.first_channel(task);
    for (int64_t g = 0; g < tasks.groups; ++g) {
      const int64_t c_begin = g * group_channels, c_end = c_begin + group_channels;
      const double invstd_g = static_cast<double>(invstd[task * tasks.groups + g]);
      // x - mean should have the sum 0 over the group: what rounding took from the mean.
      double residual = 0;
      for_each_tile(c_begin, c_end, [&](int64_t c, int64_t count) {
        Tile of_gy, of_gy_d, of_d, weight;
        total_of(work, 0, c, count, of_gy);
        total_of(work, 1, c, count, of_gy_d);
        total_of(work, 2, c, count, of_d);
        load_params(p.weight, p.param_dtype, first_channel + c, count, 1, weight);
        std::copy_n(of_gy, count, sum_gy + c);
        std::copy_n(of_gy_d, count, sum_gy_d + c);
        std::copy_n(weight, count, weights + c);
        for (int64_t i = 0; i < count; ++i) residual += of_d[i];
      });
      residual = residual - residual == 0 ? residual / values : 0;
      double sum_h = 0, sum_h_xhat = 0;
      for (int64_t c = c_begin; c < c_end; ++c) {
        sum_gy_d[c] = (sum_gy_d[c] - residual * sum_gy[c]) * invstd_g;  // of grad_y * xhat from here on
        sum_h += weights[c] * sum_gy[c];
        sum_h_xhat += weights[c] * sum_gy_d[c];
      }
      if (sample_sums != nullptr) {
        acc_t* const of_weight = sample_sums + n * C + first_channel;
        acc_t* const of_bias = of_weight + p.shape.N * C;
        for (int64_t c = c_begin; c < c_end; ++c) {
          of_weight[c] = static_cast<acc_t>(sum_gy_d[c]);
          of_bias[c] = static_cast<acc_t>(sum_gy[c]);
        }
      }
      const double slope = -(sum_h_xhat / values) * invstd_g, offset = -(sum_h / values) - residual * slope;
      for (int64_t c = c_begin; c < c_end; ++c) {
        slot.coefficients[1][c] = static_cast<acc_t>(weights[c]);
        slot.coefficients[2][c] = static_cast<acc_t>(slope);
        slot.coefficients[3][c] = static_cast<acc_t>(offset);
        slot.coefficients[4][c] = static_cast<acc_t>(invstd_g);
      }
    }
  };
  const auto apply = [&](int64_t task, const Slot<acc_t>& slot, int64_t begin, int64_t end) {
    if (grad_x == nullptr) return;
    const int64_t at = tasks.first(task);
    const auto& k = slot.coefficients;
    const Affine<scalar_t, kGy | kX | kOne | kOut> output{nullptr, gy + at, x + at, grad_x + at, nullptr,
                                                          k[1],    k[0],    k[2],   k[3],        k[4]};
    apply_units(tasks, output, around_cache, begin, end);
  };
  walk_tasks<acc_t, 3>(tasks, plan, Direction::kBackward, {gy, x, around_cache ? nullptr : grad_x},
                       sizeof(scalar_t), static_cast<char*>(p.workspace) + of_samples, prepare, reduce, finish,
                       apply);
  if (sample_sums == nullptr) return;
  const int64_t tiles = ceil_div(C, kTile);
  parallel_for(tiles, std::max<int64_t>(1, kGrainElements / (kTile * p.shape.N)),
               [&](int64_t begin, int64_t end) {
                 for_each_tile(begin * kTile, std::min(end * kTile, C), [&](int64_t c, int64_t count) {
                   for (const auto& [grad, of] :
                        {std::pair{p.grad_weight, sample_sums}, {p.grad_bias, sample_sums + p.shape.N * C}}) {
                     Tile total{};
                     for (int64_t n = 0; n < p.shape.N; ++n) {
                       for (int64_t i = 0; i < count; ++i) total[i] += static_cast<double>(of[n * C + c + i]);
                     }
                     store_params(grad, p.param_dtype, c, count, total);
                   }
                 });
               });
}

template <typename Params>
int64_t workspace_bytes(const Params& p, Direction direction, int64_t tensors) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto scalar) {
    using acc_t = acc_type<typename decltype(scalar)::type>;
    const Tasks<acc_t> tasks(p.shape);
    const int64_t shares = tasks.shares(tensors), slots = tasks.whole(shares) ? shares : tasks.count;
    bytes = of_samples_bytes(p, sizeof(acc_t)) + slots * Slot<acc_t>::bytes(tasks, direction);
    return Status::success();
  });
  return bytes;
}

}  // namespace

int64_t group_norm_forward_workspace(const GroupNormForwardParams& p) {
  return workspace_bytes(p, Direction::kForward, 2);
}
int64_t group_norm_backward_workspace(const GroupNormBackwardParams& p) {
  return workspace_bytes(p, Direction::kBackward, 3);
}

Status group_norm_forward(const GroupNormForwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    group_norm_forward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

Status group_norm_backward(const GroupNormBackwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    group_norm_backward_typed<typename decltype(scalar)::type>(p);
    return Status::success();
  });
}

}  // namespace fastnn::FASTNN_BACKEND
