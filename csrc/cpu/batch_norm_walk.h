// The order in which batch normalisation's passes go through a tensor, shared by its three directions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "batch_norm_apply.h"
#include "batch_norm_phases.h"
#include "batch_norm_plan.h"
#include "cache_hints.h"

namespace fastnn::FASTNN_BACKEND::bn {

// Bytes of one channel that one thread may read twice: most of a typical L2. What does not fit there is still
// found in L3, which a walk through the whole tensor would have emptied.
inline constexpr int64_t kFusedBytes = 4 * 1024 * 1024;

// Values of one plane that one task writes, so that few large planes still occupy every thread.
inline constexpr int64_t kPieceElements = 16 * 1024;

// A pass that has nothing to do.
struct Nothing {
  template <typename... Args>
  void operator()(Args...) const {}
};

// Whether an output of the plan's size is stored around the cache.
template <typename scalar_t>
bool stores_around_cache(const Plan& plan, const scalar_t* out) {
  constexpr int64_t kSize = sizeof(scalar_t);
  return (plan.rows ? plan.C : plan.S) * kSize % kCacheLine == 0 &&
         streams_output(out, plan.values() * plan.C * kSize, kAroundCacheBytes);
}

// prepare(c_begin, c_end) comes before anything else that is done with these channels;
// reduce(i, c_begin, c_end), skipped unless `reduces`, leaves the partial sums of chunk i; finish(c_begin,
// c_end) makes coefficients of them; apply(output...) writes the outputs. Channels come kMostPlanes or
// kChannelBlock at most at a time.
template <typename scalar_t, typename Prepare, typename Reduce, typename Finish, typename... Outputs>
void walk(const Plan& plan, int64_t tensors, bool reduces, const Prepare& prepare, const Reduce& reduce,
          const Finish& finish, const Outputs&... outputs) {
  constexpr int64_t kSize = sizeof(scalar_t);
  const int64_t values = plan.values(), total = values * plan.C;
  const int64_t shares = shares_of(total * tensors);
  const bool around_cache = (stores_around_cache(plan, outputs.out) && ...);

  if (plan.rows) {
    const int64_t blocks = plan.groups();
    const auto channels = [&](const Share& share, const auto& f) {
      const int64_t begin = share.first(plan.C), end = share.last(plan.C);
      if (begin < end) f(begin, end);
    };
    run_phases(
        shares, [&](const Share& share) { channels(share, prepare); },
        [&](const Share& share) {
          if (!reduces) return;
          for (int64_t task = share.first(plan.chunks * blocks); task < share.last(plan.chunks * blocks);
               ++task) {
            const int64_t block = task % blocks;
            reduce(task / blocks, plan.group_begin(block), plan.group_end(block));
          }
        },
        [&](const Share& share) { channels(share, finish); },
        [&](const Share& share) {
          const auto apply = [&](const auto& output) {
            if (output.out == nullptr) return;
            const int64_t begin = share.first(plan.N), end = share.last(plan.N);
            if (around_cache) {
              output.template rows<true>(plan.C, begin, end);
              end_stream();
            } else {
              output.template rows<false>(plan.C, begin, end);
            }
          };
          (apply(outputs), ...);
        });
    return;
  }

  // Bands of kStreams rows, then of one; only the latter are ever large enough to be cut into pieces.
  const int64_t groups = plan.groups();
  const int64_t grouped = plan.grouped(plan.N), quads = grouped / kStreams, bands = quads + plan.N - grouped;
  const auto apply = [&](int64_t band, int64_t group, int64_t s_begin, int64_t s_end) {
    const auto write = [&](const auto& output, auto around) {
      if (output.out == nullptr) return;
      constexpr bool kAround = decltype(around)::value;
      const int64_t c_begin = plan.group_begin(group), c_end = plan.group_end(group);
      const int64_t n = band < quads ? band * kStreams : grouped + band - quads;
      for (int64_t c = c_begin; c < c_end; ++c) {
        const int64_t at = (n * plan.C + c) * plan.S;
        if (band < quads) {
          output.template runs<kAround>(c, at, plan.S, plan.C * plan.S);
        } else {
          output.template run<kAround>(c, at + s_begin, at + s_end);
        }
      }
    };
    if (around_cache) {
      (write(outputs, std::true_type{}), ...);
    } else {
      (write(outputs, std::false_type{}), ...);
    }
  };
  const bool fits = values * tensors * kSize <= kFusedBytes;
  if (reduces && fits && (groups >= 2 * shares || shares == 1)) {
    run_phases(shares, [&](const Share& share) {
      for (int64_t group = share.first(groups); group < share.last(groups); ++group) {
        prepare(plan.group_begin(group), plan.group_end(group));
        for (int64_t i = 0; i < plan.chunks; ++i) reduce(i, plan.group_begin(group), plan.group_end(group));
        finish(plan.group_begin(group), plan.group_end(group));
        for (int64_t band = bands; band-- > 0;) apply(band, group, 0, plan.S);
      }
      if (around_cache) end_stream();
    });
    return;
  }
  const auto channels = [&](const Share& share, const auto& f) {
    for (int64_t group = share.first(groups); group < share.last(groups); ++group) {
      f(plan.group_begin(group), plan.group_end(group));
    }
  };
  run_phases(
      shares, [&](const Share& share) { channels(share, prepare); },
      [&](const Share& share) {
        if (!reduces) return;
        for (int64_t task = share.first(groups * plan.chunks); task < share.last(groups * plan.chunks);
             ++task) {
          const int64_t group = task % groups;
          reduce(task / groups, plan.group_begin(group), plan.group_end(group));
        }
      },
      [&](const Share& share) { channels(share, finish); },
      [&](const Share& share) {
        const int64_t pieces = plan.planes > 1 ? 1 : ceil_div(plan.S, kPieceElements),
                      tasks = bands * groups * pieces;
        const int64_t first = share.first(tasks);
        // Divisions once: planes may be as small as a few values.
        int64_t piece = first % pieces, group = first / pieces % groups, band = first / pieces / groups;
        for (int64_t task = first; task < share.last(tasks); ++task) {
          const int64_t s = piece * kPieceElements;
          apply(band, group, s, pieces == 1 ? plan.S : std::min(s + kPieceElements, plan.S));
          if (++piece < pieces) continue;
          piece = 0;
          if (++group < groups) continue;
          group = 0;
          ++band;
        }
        if (around_cache) end_stream();
      });
}

}  // namespace fastnn::FASTNN_BACKEND::bn
