// Max pooling on the CPU; the formula and the rules for ties and NaN stand in ops/max_pool.h.
//
// What bounds it: memory, as far as vectors can be filled. Forward reads x once and writes y and one byte an
// output; a 3x3 window costs 8 compare-and-blend steps of 5 instructions for each vector of outputs. Backward
// reads grad_y and the bytes once and writes grad_x once. Every output, or every position of grad_x, is
// computed by one thread from inputs alone, in an order that its place fixes: no bits depend on the number of
// threads or on the rest of the batch.
//
// Forward, a vector being W neighbours of the accumulation type:
//   channels last            W channels of one position (max_pool_forward.h).
//   channels first, small    rows of less than W outputs: one position of W planes (max_pool_interleaved.h).
//   channels first, staged   other rows: W neighbouring outputs of one row (max_pool_staged.h).
//   channels first, window   what fits neither, as global pooling of large planes: along the window's own rows
//                            (max_pool_forward.h).
// Backward (max_pool_backward.h), with sums in acc_t, windows in ascending order:
//   channels last            W channels of one position of grad_x, which adds the windows that chose it.
//   channels first, disjoint windows along one dimension, side by side: W windows, or W of their positions.
//   channels first, rows     square windows of 2 or 3 over rows of more than W values: W positions of a row.
//   channels first, planes   other planes that fit in L1: one scalar addition an output.
//   channels first, tiles    the same for larger planes, tile by tile.
// The common windows have variants with unrolled taps: a loop over 9 taps costs as much as their work.
//
// Error: forward and gather are exact. Backward: (windows covering a position - 1) roundings in acc_t and one
// to the element type.
#include "../ops/max_pool.h"

#include "dispatch.h"
#include "max_pool_backward.h"
#include "max_pool_backward_cells.h"
#include "max_pool_backward_disjoint.h"
#include "max_pool_backward_rows.h"
#include "max_pool_forward.h"
#include "max_pool_forward_rows.h"
#include "max_pool_geometry.h"
#include "max_pool_interleaved.h"
#include "max_pool_staged.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

using namespace pool;

// Square windows of `kernel` positions without depth or dilation that move by `stride` in both directions.
bool is_square(const PoolGeometry& g, int64_t kernel, int64_t stride) {
  return g.kernel[0] == 1 && g.stride[0] == 1 && g.kernel[1] == kernel && g.kernel[2] == kernel &&
         g.stride[1] == stride && g.stride[2] == stride && g.dilation[1] == 1 && g.dilation[2] == 1;
}

// Whether the variants for windows of one size are compiled: small windows have offsets of one byte, and
// float64 is left to the general loops.
template <typename scalar_t, typename offset_t>
constexpr bool kUnrolled = sizeof(offset_t) == 1 && sizeof(scalar_t) < sizeof(double);

template <typename scalar_t, typename offset_t, bool kTrack>
void max_pool_forward_typed(const MaxPoolForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const PoolGeometry& g = p.geometry;
  constexpr bool kSmall = kUnrolled<scalar_t, offset_t>;
  if (channels_last(g)) {
    if constexpr (kSmall) {
      if (volume(g.kernel) == 4) return max_pool_forward_channels_last<scalar_t, kTrack, 4>(p);
      if (volume(g.kernel) == 9) return max_pool_forward_channels_last<scalar_t, kTrack, 9>(p);
    }
    return max_pool_forward_channels_last_any<scalar_t, offset_t, kTrack>(p);
  }
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (kSmall) {
    const bool padded = g.pad[1] == 1 && g.pad[2] == 1, unpadded = g.pad[1] == 0 && g.pad[2] == 0;
    if (p.indices == nullptr) {
      if (is_square(g, 3, 1) && padded && g.in[2] <= kSameSizeRow)
        return max_pool_forward_same_size<scalar_t, kTrack>(p);
      if (has_short_rows(g)) {
        if (is_square(g, 2, 2) && unpadded) return max_pool_forward_short_rows<scalar_t, kTrack, 2, 0>(p);
        if (is_square(g, 3, 2) && unpadded) return max_pool_forward_short_rows<scalar_t, kTrack, 3, 0>(p);
        if (is_square(g, 3, 2) && padded) return max_pool_forward_short_rows<scalar_t, kTrack, 3, 1>(p);
      }
      if (is_square(g, 2, 2) && unpadded) return max_pool_forward_row_pairs<scalar_t, kTrack, 2, 0>(p);
      if (is_square(g, 3, 2) && unpadded) return max_pool_forward_row_pairs<scalar_t, kTrack, 3, 0>(p);
      if (is_square(g, 3, 2) && padded) return max_pool_forward_row_pairs<scalar_t, kTrack, 3, 1>(p);
    }
  }
#endif
  if (g.out[2] < kLanes<acc_t> && fits_interleaved<acc_t>(g)) {
    if constexpr (kSmall) {
      if (is_square(g, 2, g.stride[2])) return max_pool_forward_interleaved<scalar_t, offset_t, 2>(p);
      if (is_square(g, 3, g.stride[2])) return max_pool_forward_interleaved<scalar_t, offset_t, 3>(p);
    }
    return max_pool_forward_interleaved<scalar_t, offset_t, 0>(p);
  }
  const StagingPlan plan = StagingPlan::make<acc_t>(g);
  if (plan.tile == 0) return max_pool_forward_window<scalar_t, offset_t>(p);
  if constexpr (kSmall) {
    if (is_square(g, 2, 2)) return max_pool_forward_staged<scalar_t, offset_t, kTrack, 2, 2>(p, plan);
    if (is_square(g, 3, 2)) return max_pool_forward_staged<scalar_t, offset_t, kTrack, 3, 2>(p, plan);
    if (is_square(g, 3, 1)) return max_pool_forward_staged<scalar_t, offset_t, kTrack, 3, 1>(p, plan);
  }
  max_pool_forward_staged<scalar_t, offset_t, kTrack, 0, 0>(p, plan);
}

template <typename scalar_t, typename offset_t>
void max_pool_backward_typed(const MaxPoolBackwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const PoolGeometry& g = p.geometry;
  const bool padded = g.pad[1] == 1 && g.pad[2] == 1, unpadded = g.pad[1] == 0 && g.pad[2] == 0;
  if (channels_last(g)) {
    if constexpr (kUnrolled<scalar_t, offset_t>) {
      if (is_square(g, 2, 2) && unpadded) return max_pool_backward_cells<scalar_t, 2, 2, 0>(p);
      if (is_square(g, 3, 2) && unpadded) return max_pool_backward_cells<scalar_t, 3, 2, 0>(p);
      if (is_square(g, 3, 2) && padded) return max_pool_backward_cells<scalar_t, 3, 2, 1>(p);
      if (is_square(g, 3, 1) && padded) return max_pool_backward_cells<scalar_t, 3, 1, 1>(p);
    }
    return max_pool_backward_channels_last<scalar_t, offset_t>(p);
  }
  if constexpr (kUnrolled<scalar_t, offset_t>) {
    if (is_disjoint(g, 1)) return max_pool_backward_columns<scalar_t>(p);
    if (is_disjoint(g, 2) && g.kernel[2] <= kMostAlong) return max_pool_backward_along<scalar_t>(p);
    if (is_square(g, 3, 1) && padded) return max_pool_backward_same_size<scalar_t>(p);
#if defined(CPU_CAPABILITY_AVX512)
    if (has_short_rows(g)) {
      if (is_square(g, 2, 2) && unpadded) return max_pool_backward_short_rows<scalar_t, 2, 0>(p);
      if (is_square(g, 3, 2) && unpadded) return max_pool_backward_short_rows<scalar_t, 3, 0>(p);
      if (is_square(g, 3, 2) && padded) return max_pool_backward_short_rows<scalar_t, 3, 1>(p);
    }
    if (is_square(g, 2, 2) && unpadded) return max_pool_backward_row_pairs<scalar_t, 2, 0>(p);
    if (is_square(g, 3, 2) && unpadded) return max_pool_backward_row_pairs<scalar_t, 3, 0>(p);
    if (is_square(g, 3, 2) && padded) return max_pool_backward_row_pairs<scalar_t, 3, 1>(p);
#else
    if (g.in[2] > kLanes<acc_t> && g.out[2] <= BackwardRing<acc_t>::kMaxOutputs) {
      if (is_square(g, 2, 2) && unpadded) return max_pool_backward_rows<scalar_t, 2, 2, 0>(p);
      if (is_square(g, 3, 2) && unpadded) return max_pool_backward_rows<scalar_t, 3, 2, 0>(p);
      if (is_square(g, 3, 2) && padded) return max_pool_backward_rows<scalar_t, 3, 2, 1>(p);
    }
#endif
  }
  if (fits_planes(g)) return max_pool_backward_planes<scalar_t, offset_t>(p);
  max_pool_backward_tiles<scalar_t, offset_t>(p);
}

// Gather reads one element an output; W scalar loads are as fast as a gather instruction.
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
      max_pool_backward_typed<scalar_t, typename decltype(offset)::type>(p);
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
