// Max pooling on the CPU; the formula and the rules for ties and NaN stand in ops/max_pool.h.
//
// What bounds it: memory. Forward reads x once and writes y and one offset an output; a 3x3 window costs 9
// compare-and-blend steps an output, 9/16 of a vector step each with AVX-512, less than the bytes cost.
// Every output, or every position of grad_x, is computed by one thread from inputs alone, in an order that
// its place fixes: no bits depend on the number of threads.
//
// Forward, a vector being W neighbours of the accumulation type:
//   channels last           a thread owns output positions, a vector W channels of one position: taps are plain
//                           loads, and borders only shorten the loops over the window.
//   channels first, staged  a thread owns output rows, a vector W neighbouring outputs of one row. Input rows
//                           are first copied to a ring of rows in L1, padded with -inf, widened to acc_t and
//                           split by column modulo stride, so that each tap of W outputs is one contiguous
//                           load for any stride and dilation, and no border needs code of its own. The copy
//                           costs one load and one store per W inputs.
//   channels first, window  rows of fewer than kMinStagedOutputs outputs (global pooling), or windows whose
//                           rows do not fit the ring: a vector runs along the window's own rows.
// Backward, with sums in acc_t, windows in ascending order:
//   channels first          a thread owns tiles of grad_x, zeroed and added to in L1, to which it scatters
//                           every window that can reach them. Traffic: grad_y and offsets read once (windows
//                           over a tile's edge twice), grad_x written once.
//   channels last           a thread owns rows of grad_x; each position adds, W channels at a time, the windows
//                           that cover it where the offset names it.
// Gather reads one element an output; W scalar loads are as fast as a gather instruction.
//
// Error: forward and gather are exact. Backward: (windows covering a position - 1) roundings in acc_t and one
// to the element type.
#include "../ops/max_pool.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "dispatch.h"
#include "max_pool_geometry.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace pool;

// Scratch on the stack: the ring of staged rows, or backward's tile. The size of an L1 data cache.
constexpr int64_t kScratchBytes = 32 * 1024;
// Rows in the ring, which bounds its tags: 2 KiB of them.
constexpr int64_t kMaxRingRows = 256;
// With fewer outputs in a row, a vector along the row would be mostly empty.
constexpr int64_t kMinStagedOutputs = 3;
// Channels whose sums channels-last backward keeps in L1 at a time.
constexpr int64_t kChannelBlock = 512;
// Elements touched below which a task stays in the calling thread: about 10 us, what waking the pool costs.
constexpr int64_t kGrainElements = 32 * 1024;

int64_t grain(int64_t elements_per_task) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_task));
}

// W maxima and their places. Places are integers kept as bit patterns in lanes of the values' type, so that
// one mask blends both; they take part in no arithmetic.
template <typename acc_t>
struct Best {
  using V = Vec<acc_t>;
  using place_t = std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>;

  V value, place;

  static V as_lanes(int64_t place) { return V(std::bit_cast<acc_t>(static_cast<place_t>(place))); }

  // Takes x where it is greater or NaN: the first of equals and the last NaN stay.
  void offer(const V& x, const V& at) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (sizeof(acc_t) == 4) {
      const __mmask16 take = _mm512_cmp_ps_mask(x, value, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
      value = _mm512_mask_blend_ps(take, value, x);
      place = _mm512_mask_blend_ps(take, place, at);
    } else {
      const __mmask8 take = _mm512_cmp_pd_mask(x, value, _CMP_GT_OQ) | _mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q);
      value = _mm512_mask_blend_pd(take, value, x);
      place = _mm512_mask_blend_pd(take, place, at);
    }
#else
    const V take = (x > value) | (x != x);
    value = V::blendv(value, x, take);
    place = V::blendv(place, at, take);
#endif
  }
};

// The outputs of one call. kTrack is whether anybody asked for places at all.
template <typename scalar_t, typename offset_t>
struct ForwardOutputs {
  using acc_t = acc_type<scalar_t>;

  scalar_t* y;
  offset_t* offsets;
  int64_t* indices;

  explicit ForwardOutputs(const MaxPoolForwardParams& p)
      : y(static_cast<scalar_t*>(p.y)), offsets(static_cast<offset_t*>(p.offsets)), indices(p.indices) {}

  // Stores `count` lanes at element `at`; lane i's window starts at flattened index start + i * step.
  template <bool kTrack>
  void store(int64_t at, const Best<acc_t>& best, int64_t count, const DisplacementTable& table, int64_t start,
             int64_t step) const {
    store_acc(y + at, best.value, count);
    if constexpr (kTrack) {
      constexpr int W = kLanes<acc_t>;
      alignas(64) typename Best<acc_t>::place_t places[W];
      best.place.store(places);
      if (offsets != nullptr) {
        if (count == W) {
          for (int i = 0; i < W; ++i) offsets[at + i] = static_cast<offset_t>(places[i]);
        } else {
          for (int64_t i = 0; i < count; ++i) offsets[at + i] = static_cast<offset_t>(places[i]);
        }
      }
      if (indices != nullptr) {
        for (int64_t i = 0; i < count; ++i) indices[at + i] = start + i * step + table.flat(places[i]);
      }
    }
  }
};

// ---- forward, channels last ----

template <typename scalar_t, typename offset_t, bool kTrack>
void max_pool_forward_channels_last(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const int64_t row_work = g.out[2] * g.C * volume(g.kernel);

  parallel_for(g.N * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const OutputRow row(g, r);
      const scalar_t* x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in) * g.C;
      const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h);
      for (int64_t ow = 0; ow < g.out[2]; ++ow) {
        const Range taps_w = valid_taps(g, 2, ow);
        const int64_t start = window_start(g, row.d, row.h, ow);
        const int64_t first = (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2] + taps_w.begin;
        for_each_vector<acc_t>(0, g.C, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
          Best<acc_t> best{Vec<acc_t>(-std::numeric_limits<acc_t>::infinity()), Best<acc_t>::as_lanes(first)};
          for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
            for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
              const int64_t place = (kd * g.kernel[1] + kh) * g.kernel[2];
              const int64_t line = start + (kd * g.dilation[0] * g.in[1] + kh * g.dilation[1]) * g.in[2];
              for (int64_t kw = taps_w.begin; kw < taps_w.end; ++kw) {
                best.offer(load_acc(x + (line + kw * g.dilation[2]) * g.C + c, count),
                           Best<acc_t>::as_lanes(place + kw));
              }
            }
          }
          out.template store<kTrack>((r * g.out[2] + ow) * g.C + c, best, count, table, start, 0);
        });
      }
    }
  });
}

// ---- forward, channels first, staged rows ----

// Layout of a staged row: column iw of x, counted from the first column that the tile's first window has (in
// the padding or not), lies in phase (iw % stride) at index (iw / stride). Tap kw of output j is then at phase
// (kw * dilation % stride), index j + kw * dilation / stride.
struct StagingPlan {
  int64_t phases;      // phases that some tap uses
  int64_t reach;       // indices that taps reach past the tile's last output
  int64_t ring;        // input rows kept for each depth of the window, a power of two
  int64_t tile;        // outputs a tile, a multiple of W; 0 when the rows do not fit
  int64_t phase_size;  // elements

  template <typename acc_t>
  static StagingPlan make(const PoolGeometry& g) {
    constexpr int64_t W = kLanes<acc_t>;
    StagingPlan s;
    s.phases = std::min(g.stride[2], span(g, 2));
    s.reach = (span(g, 2) - 1) / g.stride[2];
    s.ring = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::min(span(g, 1), g.in[1]))));
    const int64_t rows = g.kernel[0] * s.ring;
    const int64_t room = kScratchBytes / static_cast<int64_t>(sizeof(acc_t)) / rows / s.phases - s.reach;
    s.tile = std::min(room / W, (g.out[2] + W - 1) / W) * W;
    if (rows > kMaxRingRows || s.tile <= 0 || g.out[2] < kMinStagedOutputs) s.tile = 0;
    s.phase_size = s.tile + s.reach;
    return s;
  }
};

// Fills one staged row from `x`, a row of the input, for the tile that begins at output `begin`.
template <typename scalar_t>
void stage_row(const PoolGeometry& g, const StagingPlan& s, const scalar_t* x, int64_t begin,
               acc_type<scalar_t>* staged) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const int64_t stride = g.stride[2];
  const int64_t origin = begin * stride - g.pad[2];
  Range inside[2];
  for (int64_t phase = 0; phase < s.phases; ++phase) {
    acc_t* line = staged + phase * s.phase_size;
    const int64_t first = std::clamp<int64_t>(ceil_div(-origin - phase, stride), 0, s.phase_size);
    const int64_t last = std::clamp<int64_t>(ceil_div(g.in[2] - origin - phase, stride), first, s.phase_size);
    std::fill(line, line + first, -std::numeric_limits<acc_t>::infinity());
    std::fill(line + last, line + s.phase_size, -std::numeric_limits<acc_t>::infinity());
    if (stride == 2 && s.phases == 2) {
      inside[phase] = {first, last};
    } else if (stride == 1) {
      int64_t j = first;
      for (; j + W <= last; j += W) load_acc(x + origin + j).store(line + j);
      for (; j < last; ++j) line[j] = static_cast<acc_t>(x[origin + j]);
    } else {
      for (int64_t j = first; j < last; ++j) line[j] = static_cast<acc_t>(x[origin + phase + j * stride]);
    }
  }
  if (stride == 2 && s.phases == 2) {
    acc_t* even = staged;
    acc_t* odd = staged + s.phase_size;
    int64_t j = std::max(inside[0].begin, inside[1].begin);
    for (int64_t i = inside[0].begin; i < std::min(j, inside[0].end); ++i)
      even[i] = static_cast<acc_t>(x[origin + 2 * i]);
    for (int64_t i = inside[1].begin; i < std::min(j, inside[1].end); ++i)
      odd[i] = static_cast<acc_t>(x[origin + 2 * i + 1]);
    for (; j + W <= std::min(inside[0].end, inside[1].end); j += W) {
      const auto split = at::vec::deinterleave2(load_acc(x + origin + 2 * j), load_acc(x + origin + 2 * j + W));
      split.first.store(even + j);
      split.second.store(odd + j);
    }
    for (int64_t i = j; i < inside[0].end; ++i) even[i] = static_cast<acc_t>(x[origin + 2 * i]);
    for (int64_t i = j; i < inside[1].end; ++i) odd[i] = static_cast<acc_t>(x[origin + 2 * i + 1]);
  }
}

template <typename scalar_t, typename offset_t, bool kTrack>
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

  parallel_for(g.N * g.C * g.out[0] * g.out[1], grain(row_work), [&](int64_t begin, int64_t end) {
    alignas(64) acc_t scratch[kScratchBytes / sizeof(acc_t)];
    int64_t held[kMaxRingRows];  // which input row, of all planes, each ring slot holds
    for (int64_t tile = 0; tile < g.out[2]; tile += s.tile) {
      std::fill(held, held + kMaxRingRows, int64_t(-1));
      for (int64_t r = begin; r < end; ++r) {
        const OutputRow row(g, r);
        const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h);
        const auto slot = [&](int64_t kd, int64_t kh) {
          return kd * s.ring + ((row.h * g.stride[1] - g.pad[1] + kh * g.dilation[1]) & (s.ring - 1));
        };
        for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
          for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
            const int64_t input_row =
                (row.plane * g.in[0] + row.d * g.stride[0] - g.pad[0] + kd * g.dilation[0]) * g.in[1] +
                row.h * g.stride[1] - g.pad[1] + kh * g.dilation[1];
            const int64_t at = slot(kd, kh);
            if (held[at] == input_row) continue;
            held[at] = input_row;
            stage_row(g, s, x + input_row * g.in[2], tile, scratch + at * s.phases * s.phase_size);
          }
        }
        const int64_t tile_end = std::min(tile + s.tile, g.out[2]);
        for (int64_t ow = tile; ow < tile_end; ow += W) {
          const int64_t first = (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2];
          Best<acc_t> best{Vec<acc_t>(-std::numeric_limits<acc_t>::infinity()), Best<acc_t>::as_lanes(first)};
          if (kTrack && ow * g.stride[2] < g.pad[2]) {
            // These windows begin in the padding: the first place inside x is further right.
            alignas(64) place_t places[W];
            for (int i = 0; i < W; ++i) {
              places[i] = static_cast<place_t>(
                  first + std::max<int64_t>(0, ceil_div(g.pad[2] - (ow + i) * g.stride[2], g.dilation[2])));
            }
            best.place = Vec<acc_t>::loadu(places);
          }
          for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
            for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
              const acc_t* staged = scratch + slot(kd, kh) * s.phases * s.phase_size + (ow - tile);
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
          out.template store<kTrack>(r * g.out[2] + ow, best, std::min<int64_t>(W, tile_end - ow), table,
                                     window_start(g, row.d, row.h, ow), g.stride[2]);
        }
      }
    }
  });
}

// ---- forward, channels first, one window at a time ----

// A window's maximum so far.
template <typename acc_t>
struct WindowBest {
  acc_t value;
  int64_t place;

  // For places in ascending order.
  void offer(acc_t x, int64_t at) {
    if (x > value || std::isnan(x)) {
      value = x;
      place = at;
    }
  }

  // The same rule for places in any order.
  void merge(acc_t x, int64_t at) {
    const bool nan = std::isnan(value);
    if (std::isnan(x) ? !nan || at > place : !nan && (x > value || (x == value && at < place))) {
      value = x;
      place = at;
    }
  }
};

template <typename scalar_t, typename offset_t>
void max_pool_forward_window(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  using place_t = typename Best<acc_t>::place_t;
  constexpr int W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const ForwardOutputs<scalar_t, offset_t> out(p);
  const int64_t outputs = g.N * g.C * volume(g.out);

  parallel_for(outputs, grain(volume(g.kernel)), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const OutputRow row(g, o / g.out[2]);
      const int64_t ow = o % g.out[2];
      const Range taps_d = valid_taps(g, 0, row.d), taps_h = valid_taps(g, 1, row.h),
                  taps_w = valid_taps(g, 2, ow);
      const scalar_t* x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in);
      const int64_t start = window_start(g, row.d, row.h, ow);
      WindowBest<acc_t> best{-std::numeric_limits<acc_t>::infinity(),
                             (taps_d.begin * g.kernel[1] + taps_h.begin) * g.kernel[2] + taps_w.begin};
      // Lane i's place is that of the vector it was taken in, plus i; -1 while it has taken none.
      Best<acc_t> lanes{Vec<acc_t>(best.value), Best<acc_t>::as_lanes(-1)};
      for (int64_t kd = taps_d.begin; kd < taps_d.end; ++kd) {
        for (int64_t kh = taps_h.begin; kh < taps_h.end; ++kh) {
          const int64_t place = (kd * g.kernel[1] + kh) * g.kernel[2];
          const scalar_t* line = x + start + (kd * g.dilation[0] * g.in[1] + kh * g.dilation[1]) * g.in[2];
          int64_t kw = taps_w.begin;
          if (g.dilation[2] == 1) {
            for (; kw + W <= taps_w.end; kw += W) {
              lanes.offer(load_acc(line + kw), Best<acc_t>::as_lanes(place + kw));
            }
          }
          for (; kw < taps_w.end; ++kw) best.offer(static_cast<acc_t>(line[kw * g.dilation[2]]), place + kw);
        }
      }
      alignas(64) acc_t values[W];
      alignas(64) place_t places[W];
      lanes.value.store(values);
      lanes.place.store(places);
      for (int i = 0; i < W; ++i) {
        if (places[i] >= 0) best.merge(values[i], places[i] + i);
      }
      out.y[o] = static_cast<scalar_t>(best.value);
      if (out.offsets != nullptr) out.offsets[o] = static_cast<offset_t>(best.place);
      if (out.indices != nullptr) out.indices[o] = start + table.flat(best.place);
    }
  });
}

template <typename scalar_t, typename offset_t, bool kTrack>
void max_pool_forward_typed(const MaxPoolForwardParams& p) {
  if (channels_last(p.geometry)) return max_pool_forward_channels_last<scalar_t, offset_t, kTrack>(p);
  const StagingPlan plan = StagingPlan::make<acc_type<scalar_t>>(p.geometry);
  if (plan.tile > 0) return max_pool_forward_staged<scalar_t, offset_t, kTrack>(p, plan);
  max_pool_forward_window<scalar_t, offset_t>(p);
}

// ---- backward ----

template <typename scalar_t, typename offset_t>
void max_pool_backward_channels_first(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  constexpr int64_t kTileElements = kScratchBytes / sizeof(acc_t);
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  const int64_t tile_w = std::min(g.in[2], kTileElements);
  const int64_t tile_h = std::min(g.in[1], kTileElements / tile_w);
  const bool whole_rows = tile_w == g.in[2] && g.kernel[0] == 1;
  const int64_t tiles_w = ceil_div(g.in[2], tile_w), tiles_h = ceil_div(g.in[1], tile_h);

  parallel_for(
      g.N * g.C * g.in[0] * tiles_h * tiles_w, grain(tile_h * tile_w), [&](int64_t begin, int64_t end) {
        alignas(64) acc_t tile[kTileElements];
        for (int64_t t = begin; t < end; ++t) {
          const int64_t w0 = t % tiles_w * tile_w, h0 = t / tiles_w % tiles_h * tile_h;
          const int64_t slice = t / (tiles_w * tiles_h);
          const int64_t plane = slice / g.in[0], id = slice % g.in[0];
          const int64_t width = std::min(tile_w, g.in[2] - w0), height = std::min(tile_h, g.in[1] - h0);
          std::fill(tile, tile + width * height, acc_t(0));

          const Range outputs_d = covering_outputs(g, 0, id, id + 1);
          const Range outputs_h = covering_outputs(g, 1, h0, h0 + height);
          const Range outputs_w = covering_outputs(g, 2, w0, w0 + width);
          for (int64_t od = outputs_d.begin; od < outputs_d.end; ++od) {
            const int64_t depth = id - (od * g.stride[0] - g.pad[0]);
            for (int64_t oh = outputs_h.begin; oh < outputs_h.end; ++oh) {
              const int64_t line = ((plane * g.out[0] + od) * g.out[1] + oh) * g.out[2];
              const scalar_t* grad_y = static_cast<const scalar_t*>(p.grad_y) + line;
              const offset_t* offsets = static_cast<const offset_t*>(p.offsets) + line;
              const int64_t row = oh * g.stride[1] - g.pad[1] - h0;
              const bool above = row < 0 && h0 > 0, below = row + span(g, 1) > height && h0 + height < g.in[1];
              if (whole_rows && !above && !below) {
                // Every place that this row's windows can name lies in the tile. The comparison is for offsets
                // that max_pool_forward did not make.
                const int64_t start = row * width - g.pad[2];
                const auto inside = static_cast<uint64_t>(width * height);
                for (int64_t ow = outputs_w.begin; ow < outputs_w.end; ++ow) {
                  const int64_t place = start + ow * g.stride[2] + table.flat(offsets[ow]);
                  if (static_cast<uint64_t>(place) < inside) tile[place] += static_cast<acc_t>(grad_y[ow]);
                }
                continue;
              }
              for (int64_t ow = outputs_w.begin; ow < outputs_w.end; ++ow) {
                const Displacement at = table(offsets[ow]);
                const int64_t h = row + at.h, w = ow * g.stride[2] - g.pad[2] - w0 + at.w;
                // One comparison a side: negative positions are huge unsigned numbers.
                if (at.d == depth && static_cast<uint64_t>(h) < static_cast<uint64_t>(height) &&
                    static_cast<uint64_t>(w) < static_cast<uint64_t>(width)) {
                  tile[h * width + w] += static_cast<acc_t>(grad_y[ow]);
                }
              }
            }
          }

          for (int64_t h = 0; h < height; ++h) {
            scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x) + (slice * g.in[1] + h0 + h) * g.in[2] + w0;
            const acc_t* sums = tile + h * width;
            int64_t w = 0;
            for (; w + W <= width; w += W) store_acc(grad_x + w, Vec<acc_t>::loadu(sums + w));
            for (; w < width; ++w) grad_x[w] = static_cast<scalar_t>(sums[w]);
          }
        }
      });
}

// Window position along dimension d at which output o sees input i; -1 when dilation steps over it.
int64_t tap_of(const PoolGeometry& g, int d, int64_t i, int64_t o) {
  const int64_t distance = i + g.pad[d] - o * g.stride[d];
  if (g.dilation[d] == 1) return distance;
  return distance % g.dilation[d] == 0 ? distance / g.dilation[d] : -1;
}

// Adds grad_y to sums where the offset is `place`, for `count` channels.
template <typename scalar_t, typename offset_t>
void add_where_chosen(const scalar_t* grad_y, const offset_t* offsets, offset_t place, int64_t count,
                      acc_type<scalar_t>* sums) {
  using acc_t = acc_type<scalar_t>;
  using mask_t = typename Best<acc_t>::place_t;
  constexpr int64_t W = kLanes<acc_t>;
  int64_t c = 0;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(acc_t) == 4 && sizeof(offset_t) == 1) {
    const __m128i wanted = _mm_set1_epi8(static_cast<char>(place));
    for (; c + W <= count; c += W) {
      const __m128i here = _mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets + c));
      const __m512 sum = _mm512_loadu_ps(sums + c);
      _mm512_storeu_ps(sums + c,
                       _mm512_mask_add_ps(sum, _mm_cmpeq_epi8_mask(here, wanted), sum, load_acc(grad_y + c)));
    }
  }
#endif
  for (; c + W <= count; c += W) {
    alignas(64) mask_t chosen[W];
    for (int64_t i = 0; i < W; ++i) chosen[i] = offsets[c + i] == place ? mask_t(-1) : mask_t(0);
    (Vec<acc_t>::loadu(sums + c) + (load_acc(grad_y + c) & Vec<acc_t>::loadu(chosen))).store(sums + c);
  }
  for (; c < count; ++c) {
    if (offsets[c] == place) sums[c] += static_cast<acc_t>(grad_y[c]);
  }
}

template <typename scalar_t, typename offset_t>
void max_pool_backward_channels_last(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const PoolGeometry& g = p.geometry;
  const int64_t overlap = ceil_div(g.kernel[0], g.stride[0]) * ceil_div(g.kernel[1], g.stride[1]) *
                          ceil_div(g.kernel[2], g.stride[2]);

  parallel_for(g.N * g.in[0] * g.in[1], grain(g.in[2] * g.C * overlap), [&](int64_t begin, int64_t end) {
    alignas(64) acc_t sums[kChannelBlock];
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / (g.in[0] * g.in[1]), id = r / g.in[1] % g.in[0], ih = r % g.in[1];
      const Range outputs_d = covering_outputs(g, 0, id, id + 1),
                  outputs_h = covering_outputs(g, 1, ih, ih + 1);
      Range outputs_w{0, 0};
      for (int64_t iw = 0; iw < g.in[2]; ++iw) {
        // covering_outputs() of iw, moved along without divisions.
        while (outputs_w.end < g.out[2] && outputs_w.end * g.stride[2] - g.pad[2] <= iw) ++outputs_w.end;
        while (outputs_w.begin < outputs_w.end && outputs_w.begin * g.stride[2] - g.pad[2] + span(g, 2) <= iw) {
          ++outputs_w.begin;
        }
        for (int64_t c0 = 0; c0 < g.C; c0 += kChannelBlock) {
          const int64_t count = std::min(kChannelBlock, g.C - c0);
          std::fill(sums, sums + count, acc_t(0));
          for (int64_t od = outputs_d.begin; od < outputs_d.end; ++od) {
            const int64_t kd = tap_of(g, 0, id, od);
            if (kd < 0) continue;
            for (int64_t oh = outputs_h.begin; oh < outputs_h.end; ++oh) {
              const int64_t kh = tap_of(g, 1, ih, oh);
              if (kh < 0) continue;
              for (int64_t ow = outputs_w.begin; ow < outputs_w.end; ++ow) {
                const int64_t kw = tap_of(g, 2, iw, ow);
                if (kw < 0) continue;
                const int64_t at = (((n * g.out[0] + od) * g.out[1] + oh) * g.out[2] + ow) * g.C + c0;
                add_where_chosen(
                    static_cast<const scalar_t*>(p.grad_y) + at, static_cast<const offset_t*>(p.offsets) + at,
                    static_cast<offset_t>((kd * g.kernel[1] + kh) * g.kernel[2] + kw), count, sums);
              }
            }
          }
          scalar_t* grad_x = static_cast<scalar_t*>(p.grad_x) + (r * g.in[2] + iw) * g.C + c0;
          for (int64_t c = 0; c < count; c += W) {
            store_acc(grad_x + c, Vec<acc_t>::loadu(sums + c), std::min<int64_t>(W, count - c));
          }
        }
      }
    }
  });
}

// ---- gather ----

template <typename scalar_t, typename offset_t>
void max_pool_gather_typed(const MaxPoolGatherParams& p) {
  const PoolGeometry& g = p.geometry;
  const DisplacementTable table(g);
  // With channels first a plane is (n, c) and has one channel.
  const int64_t channels = channels_last(g) ? g.C : 1;
  const int64_t planes = g.N * g.C / channels;
  const auto inside = static_cast<uint64_t>(volume(g.in));

  parallel_for(planes * g.out[0] * g.out[1], grain(g.out[2] * channels), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const OutputRow row(g, r);
      const scalar_t* x = static_cast<const scalar_t*>(p.x) + row.plane * volume(g.in) * channels;
      for (int64_t ow = 0; ow < g.out[2]; ++ow) {
        const int64_t at = (r * g.out[2] + ow) * channels;
        const int64_t start = window_start(g, row.d, row.h, ow);
        const offset_t* offsets = static_cast<const offset_t*>(p.offsets) + at;
        scalar_t* y = static_cast<scalar_t*>(p.y) + at;
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t place = start + table.flat(offsets[c]);
          // Offsets that max_pool_forward did not make may name a place outside.
          y[c] = static_cast<uint64_t>(place) < inside ? x[place * channels + c] : scalar_t(0);
        }
      }
    }
  });
}

}  // namespace

Status max_pool_forward(const MaxPoolForwardParams& params, Stream) {
  MaxPoolForwardParams p = params;
  p.geometry = folded(p.geometry);
  const bool track = p.offsets != nullptr || p.indices != nullptr;
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    return dispatch_offset_type(p.offset_type, [&](auto offset) {
      using offset_t = typename decltype(offset)::type;
      if (track) {
        max_pool_forward_typed<scalar_t, offset_t, true>(p);
      } else {
        max_pool_forward_typed<scalar_t, offset_t, false>(p);
      }
      return Status::success();
    });
  });
}

Status max_pool_backward(const MaxPoolBackwardParams& params, Stream) {
  MaxPoolBackwardParams p = params;
  p.geometry = folded(p.geometry);
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    return dispatch_offset_type(p.offset_type, [&](auto offset) {
      using offset_t = typename decltype(offset)::type;
      if (channels_last(p.geometry)) {
        max_pool_backward_channels_last<scalar_t, offset_t>(p);
      } else {
        max_pool_backward_channels_first<scalar_t, offset_t>(p);
      }
      return Status::success();
    });
  });
}

Status max_pool_gather(const MaxPoolGatherParams& params, Stream) {
  MaxPoolGatherParams p = params;
  p.geometry = folded(p.geometry);
  return dispatch_dtype(p.dtype, [&](auto scalar) {
    using scalar_t = typename decltype(scalar)::type;
    return dispatch_offset_type(p.offset_type, [&](auto offset) {
      max_pool_gather_typed<scalar_t, typename decltype(offset)::type>(p);
      return Status::success();
    });
  });
}

}  // namespace fastnn::FASTNN_BACKEND
