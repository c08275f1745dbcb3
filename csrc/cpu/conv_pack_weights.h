// Packs filters as panels of rows, [step of the reduction][row], for the whole reduction at once.
//
// The micro-kernel broadcasts a panel's rows from one stream, which the processor prefetches from L3 where the
// filters (9 MB for 512 x 512 x 3 x 3) do not fit in L2. The reduction runs over (tap, channel), while
// channels-first memory has taps innermost: packed tap by tap each line would be fetched for each tap.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "conv_gemm.h"
#include "conv_patches.h"
#include "conv_transpose.h"

namespace fastnn::FASTNN_BACKEND {

// Taps whose places a packer keeps on the stack, and channels that it moves at once.
inline constexpr int64_t kMaxContiguousTaps = 64;
inline constexpr int64_t kChannelsAtOnce = 16;

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

// Writes rows [first, last) of the matrix as [block][step][height]; what lies behind the last row is 0.
template <typename scalar_t>
void pack_filter_panel(const PatchMatrix<scalar_t>& matrix, int64_t first, int64_t last, int64_t height,
                       int64_t depth_block, acc_type<scalar_t>* panel, int64_t block_stride) {
  using acc_t = acc_type<scalar_t>;
  const Axis& depth = matrix.depth;
  if (depth.length() == 0) return;  // residues of grad_input may have no tap
  const int64_t rows = last - first, row_stride = matrix.positions.stride[3];
  const scalar_t* const src = matrix.data + matrix.origin_offset + AxisCursor(matrix.positions, first).offset();
  // Elements that are neighbours in memory, up to the end of a run; or else one after the other.
  const int64_t taps = depth.size[2], channels = depth.size[3];
  const bool taps_innermost = depth.size[0] * depth.size[1] == 1 && depth.stride[2] == 1 &&
                              depth.stride[3] == taps && taps <= kMaxContiguousTaps;
  if (taps_innermost) {
    BlockedPanel<acc_t> place[kMaxContiguousTaps];
    for (int64_t t = 0; t < taps; ++t) place[t] = {panel, height, depth_block, block_stride, t * channels};
    acc_t piece[kMaxContiguousTaps * kChannelsAtOnce * kMaxRows] = {};
    for (int64_t c = 0; c < channels; c += kChannelsAtOnce) {
      const int64_t count = std::min(kChannelsAtOnce, channels - c);
      copy_transposed(src + c * taps, row_stride, rows, count * taps, piece, kMaxRows);
      const acc_t* step = piece;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t t = 0; t < taps; ++t, step += kMaxRows) {
          if (height == kMaxRows) {
            std::memcpy(place[t].next(), step, kMaxRows * sizeof(acc_t));
          } else {
            std::copy_n(step, height, place[t].next());
          }
        }
      }
    }
    return;
  }
  BlockedPanel<acc_t> place(panel, height, depth_block, block_stride, 0);
  const int64_t length = depth.length(), stride = depth.stride[3];
  acc_t piece[kChannelsAtOnce * kMaxRows] = {};
  AxisCursor cursor(depth, 0);
  for (int64_t d = 0; d < length;) {
    const int64_t count = cursor.run(std::min(kChannelsAtOnce, length - d));
    const scalar_t* const run = src + cursor.offset();
    if (stride == 1) {
      copy_transposed(run, row_stride, rows, count, piece, kMaxRows);
    } else {
      for (int64_t i = 0; i < count; ++i) copy_run(piece + i * kMaxRows, run + i * stride, row_stride, rows);
    }
    for (int64_t i = 0; i < count; ++i) std::copy_n(piece + i * kMaxRows, height, place.next());
    cursor.advance(count);
    d += count;
  }
}

}  // namespace fastnn::FASTNN_BACKEND
