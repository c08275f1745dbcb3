// Forward of max pooling, channels first, along rows of staged input.
//
// A thread owns output rows, a vector W neighbouring outputs of one row. Input rows are first copied to a ring
// of rows in L1, padded with -inf, widened to acc_t and split by column modulo stride, so that each tap of W
// outputs is one contiguous load for any stride and dilation, and no border needs code of its own. The copy
// costs one load, one permutation and one store per W inputs.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "max_pool_forward.h"

namespace fastnn::FASTNN_BACKEND::pool {

// The ring of staged rows lies on the stack. The size of an L1 data cache.
inline constexpr int64_t kRingBytes = 32 * 1024;
// Rows in the ring, which bounds its tags: 2 KiB of them.
inline constexpr int64_t kMaxRingRows = 256;
// Phases of a staged row; windows of larger strides have rows of their own to run along.
inline constexpr int64_t kMaxPhases = 16;
// With fewer outputs in a row, a vector along the row would be mostly empty.
inline constexpr int64_t kMinStagedOutputs = 3;

// Layout of a staged row: column iw of x, counted from the first column that the tile's first window has (in
// the padding or not), lies in phase (iw % stride) at index (iw / stride). Tap kw of output j is then at phase
// (kw * dilation % stride), index j + kw * dilation / stride.
struct StagingPlan {
  int64_t phases;      // phases that some tap uses
  int64_t reach;       // indices that taps reach past the tile's last output
  int64_t ring;        // input rows kept for each depth of the window, a power of two
  int64_t rows;        // of the ring, of all depths; one more stands for the padding above and below
  int64_t tile;        // outputs a tile, a multiple of W; 0 when the rows do not fit
  int64_t phase_size;  // elements

  template <typename acc_t>
  static StagingPlan make(const PoolGeometry& g) {
    constexpr int64_t W = kLanes<acc_t>;
    StagingPlan s;
    s.phases = std::min(g.stride[2], span(g, 2));
    s.reach = (span(g, 2) - 1) / g.stride[2];
    s.ring = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::min(span(g, 1), g.in[1]))));
    s.rows = g.kernel[0] * s.ring;
    const int64_t room = kRingBytes / static_cast<int64_t>(sizeof(acc_t)) / (s.rows + 1) / s.phases - s.reach;
    s.tile = std::min(room / W, (g.out[2] + W - 1) / W) * W;
    if (s.rows >= kMaxRingRows || s.phases > kMaxPhases || s.tile <= 0 || g.out[2] < kMinStagedOutputs)
      s.tile = 0;
    s.phase_size = s.tile + s.reach;
    return s;
  }

  int64_t row_size() const { return phases * phase_size; }
};

// The indices of each phase that one tile's columns inside x fill; what lies around them stays -inf.
struct StagedColumns {
  int64_t origin;  // column of x at index 0 of phase 0
  Range inside[kMaxPhases];

  StagedColumns(const PoolGeometry& g, const StagingPlan& s, int64_t tile)
      : origin(tile * g.stride[2] - g.pad[2]) {
    for (int64_t phase = 0; phase < s.phases; ++phase) {
      inside[phase].begin = std::clamp<int64_t>(ceil_div(-origin - phase, g.stride[2]), 0, s.phase_size);
      inside[phase].end = std::clamp<int64_t>(ceil_div(g.in[2] - origin - phase, g.stride[2]),
                                              inside[phase].begin, s.phase_size);
    }
  }
};

// f(i) for vectors that cover [begin, end): the last one overlaps the one before it rather than being partial.
// False, and nothing done, when not even one fits.
template <int W, typename F>
inline __attribute__((always_inline)) bool cover(const Range& range, const F& f) {
  if (range.size() < W) return false;
  int64_t i = range.begin;
  for (; i + W <= range.end; i += W) f(i);
  if (i < range.end) f(range.end - W);
  return true;
}

// Fills one staged row from `x`, a row of the input.
template <typename scalar_t>
void stage_row(const PoolGeometry& g, const StagingPlan& s, const StagedColumns& columns, const scalar_t* x,
               acc_type<scalar_t>* staged) {
  using acc_t = acc_type<scalar_t>;
  constexpr int W = kLanes<acc_t>;
  const int64_t stride = g.stride[2];
  x += columns.origin;
  if (stride == 1) {
    if (cover<W>(columns.inside[0], [&](int64_t j) { load_acc(x + j).store(staged + j); })) return;
  }
  Range rest[kMaxPhases];
  std::copy(columns.inside, columns.inside + s.phases, rest);
  if (stride == 2 && s.phases == 2) {
    acc_t* odd = staged + s.phase_size;
    const Range both{std::max(rest[0].begin, rest[1].begin), std::min(rest[0].end, rest[1].end)};
    const bool covered = cover<W>(both, [&](int64_t j) {
      const auto split = at::vec::deinterleave2(load_acc(x + 2 * j), load_acc(x + 2 * j + W));
      split.first.store(staged + j);
      split.second.store(odd + j);
    });
    if (covered) {
      // At each end one phase may reach one index further.
      for (int phase = 0; phase < 2; ++phase) {
        acc_t* line = staged + phase * s.phase_size;
        if (rest[phase].begin < both.begin)
          line[both.begin - 1] = static_cast<acc_t>(x[2 * both.begin - 2 + phase]);
        if (rest[phase].end > both.end) line[both.end] = static_cast<acc_t>(x[2 * both.end + phase]);
      }
      return;
    }
  }
  for (int64_t phase = 0; phase < s.phases; ++phase) {
    acc_t* line = staged + phase * s.phase_size;
    for (int64_t j = rest[phase].begin; j < rest[phase].end; ++j)
      line[j] = static_cast<acc_t>(x[phase + j * stride]);
  }
}

// kKernel > 0: square windows of that size without depth or dilation, and a stride of kStride along the row.
template <typename scalar_t, typename offset_t, bool kTrack, int kKernel, int kStride>
void max_pool_forward_staged(const MaxPoolForwardParams& p, const StagingPlan& s) {
  using acc_t = acc_type<scalar_t>;
  using place_t = typename Best<acc_t>::place_t;
  constexpr int W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const scalar_t* x = static_cast<const scalar_t*>(p.x);
  const int64_t row_work = g.out[2] * volume(g.kernel);
  const int64_t shift_step = g.dilation[2] / g.stride[2], phase_step = g.dilation[2] % g.stride[2];

  // The first places inside x of the W windows from (h, ow), of which the first may begin in the padding.
  const auto first_places = [&](int64_t place, int64_t ow) {
    if (ow * g.stride[2] >= g.pad[2]) return Best<acc_t>::as_lanes(place);
    alignas(64) place_t places[W];
    for (int i = 0; i < W; ++i) {
      const int64_t outside = g.pad[2] - (ow + i) * g.stride[2];
      places[i] = static_cast<place_t>(place + (outside > 0 ? ceil_div(outside, g.dilation[2]) : 0));
    }
    return Vec<acc_t>::loadu(places);
  };

  parallel_for(g.N * g.C * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    alignas(64) acc_t scratch[kRingBytes / sizeof(acc_t)];
    int64_t held[kMaxRingRows];  // which input row, of all planes, each ring slot holds
    for (int64_t tile = 0; tile < g.out[2]; tile += s.tile) {
      const StagedColumns columns(g, s, tile);
      const int64_t tile_end = std::min(tile + s.tile, g.out[2]);
      std::fill(held, held + s.rows, int64_t(-1));
      std::fill(scratch, scratch + (s.rows + 1) * s.row_size(), -std::numeric_limits<acc_t>::infinity());
      acc_t* const outside = scratch + s.rows * s.row_size();
      OutputRow row(g, begin);
      for (int64_t r = begin; r < end; ++r, row.next(g)) {
        const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h);
        const int64_t top = row.h * g.stride[1] - g.pad[1];
        // The staged row that holds row kh of the window at depth kd, which must lie inside x.
        const auto staged_row = [&](int64_t kd, int64_t kh) {
          const int64_t ih = top + kh * g.dilation[1];
          const int64_t slot = kd * s.ring + (ih & (s.ring - 1));
          const int64_t input_row =
              (row.plane * g.in[0] + row.d * g.stride[0] - g.pad[0] + kd * g.dilation[0]) * g.in[1] + ih;
          acc_t* staged = scratch + slot * s.row_size();
          if (held[slot] != input_row) {
            held[slot] = input_row;
            stage_row(g, s, columns, x + input_row * g.in[2], staged);
          }
          return staged;
        };
        const int64_t first = (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2];
        const int64_t start = window_start(g, row.d, row.h, 0);
        const auto store = [&](int64_t ow, const Best<acc_t>& best) __attribute__((always_inline)) {
          out.template store<kTrack>(r * g.out[2] + ow, best, std::min<int64_t>(W, tile_end - ow), table,
                                     start + ow * g.stride[2], g.stride[2]);
        };
        if constexpr (kKernel > 0) {
          const acc_t* lines[kKernel];
          for (int kh = 0; kh < kKernel; ++kh) {
            lines[kh] = taps_h.begin <= kh && kh < taps_h.end ? staged_row(0, kh) : outside;
          }
          for (int64_t ow = tile; ow < tile_end; ow += W) {
            // Padding holds -inf, which takes no place from the first one inside.
            Best<acc_t> best{Vec<acc_t>::loadu(lines[0] + ow - tile), first_places(first, ow)};
#pragma GCC unroll 8
            for (int k = 1; k < kKernel * kKernel; ++k) {
              const int kh = k / kKernel, kw = k % kKernel;
              best.offer(Vec<acc_t>::loadu(lines[kh] + kw % kStride * s.phase_size + kw / kStride + ow - tile),
                         Best<acc_t>::as_lanes(k));
            }
            store(ow, best);
          }
        } else {
          for (int64_t ow = tile; ow < tile_end; ow += W) {
            Best<acc_t> best{Vec<acc_t>(-std::numeric_limits<acc_t>::infinity()), first_places(first, ow)};
            for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
              for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
                const acc_t* staged = staged_row(kd, kh) + (ow - tile);
                int64_t place = (kd * g.kernel[1] + kh) * g.kernel[2];
                int64_t phase = 0;
                for (int64_t kw = 0; kw < g.kernel[2]; ++kw) {
                  best.offer(Vec<acc_t>::loadu(staged + phase * s.phase_size), Best<acc_t>::as_lanes(place++));
                  staged += shift_step;
                  phase += phase_step;
                  if (phase >= g.stride[2]) {
                    phase -= g.stride[2];
                    ++staged;
                  }
                }
              }
            }
            store(ow, best);
          }
        }
      }
    }
  });
}

}  // namespace fastnn::FASTNN_BACKEND::pool
