// Packs filters as panels of rows or columns, [step of the reduction][filter], for the whole reduction at once.
//
// The micro-kernel reads a panel as one stream, which the processor prefetches from L3 where the filters (9 MB
// for 512 x 512 x 3 x 3) do not fit in L2. The reduction runs over (tap, channel), while
// channels-first memory has taps innermost: packed tap by tap each line would be fetched for each tap.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv_gemm.h"
#include "conv_patches.h"
#include "conv_transpose.h"

namespace fastnn::FASTNN_BACKEND {

// Taps whose places a packer keeps on the stack, and elements of a filter that it moves at once: those of so
// many filters (16 KB of floats) stay in L1.
inline constexpr int64_t kMaxContiguousTaps = 64;
inline constexpr int64_t kElementsAtOnce = 256;
template <typename acc_t>
inline constexpr int64_t kFiltersAtOnce = std::max<int64_t>(kMaxRows, kLanes<acc_t>);

// Where step d of the reduction lies in a panel cut in blocks of `depth_block` steps, `block_stride` apart.
template <typename acc_t>
class BlockedPanel {
 public:
  BlockedPanel(acc_t* panel, int64_t height, int64_t depth_block, int64_t block_stride, int64_t d)
      : place_(panel + d / depth_block * block_stride + d % depth_block * height),
        left_(depth_block - d % depth_block),
        height_(height),
        depth_block_(depth_block),
        jump_(block_stride - depth_block * height) {}
  BlockedPanel() = default;

  acc_t* next() {
    acc_t* const place = place_;
    place_ += height_;
    if (--left_ == 0) {
      place_ += jump_;
      left_ = depth_block_;
    }
    return place;
  }

 private:
  acc_t* place_;
  int64_t left_, height_, depth_block_, jump_;
};

// Writes filters [first, last), at most kFiltersAtOnce, as [block][step][height], steps `pitch` apart; what
// lies behind the last one is 0.
template <typename scalar_t>
void pack_filters(const PatchMatrix<scalar_t>& matrix, int64_t first, int64_t last, int64_t height,
                  int64_t pitch, int64_t depth_block, acc_type<scalar_t>* panel, int64_t block_stride) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t kPitch = kFiltersAtOnce<acc_t>;
  const Axis& depth = matrix.depth;
  if (depth.length() == 0) return;  // residues of grad_input may have no tap
  const int64_t filters = last - first, filter_stride = matrix.positions.stride[3];
  const scalar_t* const src = matrix.data + matrix.origin_offset + AxisCursor(matrix.positions, first).offset();
  alignas(64) acc_t piece[kElementsAtOnce * kPitch] = {};
  const auto put = [height](const acc_t* step, acc_t* place) {
    if (height == kPitch) {
      std::memcpy(place, step, kPitch * sizeof(acc_t));
    } else if (height == kMaxRows) {
      std::memcpy(place, step, kMaxRows * sizeof(acc_t));
    } else {
      std::copy_n(step, height, place);
    }
  };
  // Elements that are neighbours in memory, up to the end of a run; or else one after the other.
  const int64_t taps = depth.size[2], channels = depth.size[3];
  const bool taps_innermost = depth.size[0] * depth.size[1] == 1 && depth.stride[2] == 1 &&
                              depth.stride[3] == taps && taps <= kMaxContiguousTaps;
  if (taps_innermost) {
    BlockedPanel<acc_t> place[kMaxContiguousTaps];
    for (int64_t t = 0; t < taps; ++t) place[t] = {panel, pitch, depth_block, block_stride, t * channels};
    const int64_t at_once = kElementsAtOnce / taps;
    for (int64_t c = 0; c < channels; c += at_once) {
      const int64_t count = std::min(at_once, channels - c);
      copy_transposed(src + c * taps, filter_stride, filters, count * taps, piece, kPitch);
      const acc_t* step = piece;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t t = 0; t < taps; ++t, step += kPitch) put(step, place[t].next());
      }
    }
    return;
  }
  const int64_t length = depth.length(), stride = depth.stride[3];
  int64_t spread = 1;  // of the taps of a channel in memory
  for (int i = 0; i < 3; ++i) spread += (depth.size[i] - 1) * depth.stride[i];
  if (stride != 1 && filter_stride != 1 && std::max(spread, length / channels) <= kMaxContiguousTaps) {
    // Channels are far apart, as those of grad_input are; taps, all or those of one residue, are neighbours.
    BlockedPanel<acc_t> place[kMaxContiguousTaps];
    int64_t offset[kMaxContiguousTaps], count = 0;
    AxisCursor tap(depth, 0);
    for (; count * channels < length; ++count, tap.advance(channels)) {
      place[count] = {panel, pitch, depth_block, block_stride, count * channels};
      offset[count] = tap.offset();
    }
    for (int64_t c = 0; c < channels; ++c) {
      copy_transposed(src + c * stride, filter_stride, filters, spread, piece, kPitch);
      for (int64_t t = 0; t < count; ++t) put(piece + offset[t] * kPitch, place[t].next());
    }
    return;
  }
  BlockedPanel<acc_t> place(panel, pitch, depth_block, block_stride, 0);
  AxisCursor cursor(depth, 0);
  for (int64_t d = 0; d < length;) {
    const int64_t count = cursor.run(std::min(kElementsAtOnce, length - d));
    const scalar_t* const run = src + cursor.offset();
    if (stride == 1) {
      copy_transposed(run, filter_stride, filters, count, piece, kPitch);
    } else {
      for (int64_t i = 0; i < count; ++i)
        copy_run(piece + i * kPitch, run + i * stride, filter_stride, filters);
    }
    for (int64_t i = 0; i < count; ++i) put(piece + i * kPitch, place.next());
    cursor.advance(count);
    d += count;
  }
}

// Writes filters [first, last) as a panel, [block][step][width].
template <typename scalar_t>
void pack_filter_panel(const PatchMatrix<scalar_t>& matrix, int64_t first, int64_t last, int64_t width,
                       int64_t depth_block, acc_type<scalar_t>* panel, int64_t block_stride) {
  constexpr int64_t at_once = kFiltersAtOnce<acc_type<scalar_t>>;
  for (int64_t i = 0; first + i < last; i += at_once) {
    pack_filters(matrix, first + i, std::min(last, first + i + at_once), std::min(at_once, width - i), width,
                 depth_block, panel + i, block_stride);
  }
}

}  // namespace fastnn::FASTNN_BACKEND
