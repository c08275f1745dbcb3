// Operands of the micro-kernel that stay where they are: segments and addresses instead of packed panels.
//
// Packing writes each element of an activation once per tap, and 48 to 512 filters later it is overwritten; at
// 64 filters that is 12 % of the time. What the micro-kernel needs is an address that advances evenly, and that
// holds
//
//   rows, reduction over (tap, channel): along the channels of one tap, when channels are contiguous. Each row
//     (position) has an address for each tap, that of a run of zeros where the tap is outside; any stride and
//     dilation.
//   columns, reduction over (tap, channel): along the channels of one tap, when positions are contiguous and
//     all runs of a panel are equally far from their places, as the rows of an image as wide as the output are.
//     Lanes outside are masked off.
//   rows, reduction over positions: along the positions of an image row at which the tap is inside, for a panel
//     of rows that are channels of one tap; any stride and dilation.
//
// The products and their order are those of packed panels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_gemm.h"
#include "conv_patches.h"

namespace fastnn::FASTNN_BACKEND {

// Shortest run of channels for which addresses are cheaper than a copy: about 30 cycles for a panel's addresses
// per tap, against as many for each vector of the copy.
inline constexpr int64_t kMinAddressedRun = 16;

// A block of the reduction has at most so many taps of which kMinAddressedRun channels or more are whole.
inline constexpr int64_t kMaxAddressedTaps = kDepthBlock / kMinAddressedRun + 2;

// What rows read where a tap is outside.
template <typename acc_t>
alignas(64) inline constexpr acc_t kZeros[kDepthBlock] = {};

// Writes the addresses of rows at the first channel of each tap: table[tap][pitch].
template <typename acc_t>
void address_rows(const PatchMatrix<acc_t>& matrix, const PositionRuns& positions, const TapRuns& taps,
                  int64_t pitch, const acc_t** table) {
  const int64_t step = matrix.positions.stride[3];
  for (int64_t t = 0; t < taps.count; ++t, table += pitch) {
    const TapRun& tap = taps.run[t];
    const InsideRange range(matrix.step[2], tap.width, matrix.extent[2]);
    for (int64_t r = 0; r < positions.count; ++r) {
      const PositionRun& run = positions.run[r];
      int64_t first = 0, last = 0;
      if (inside(run.depth + tap.depth, matrix.extent[0]) &&
          inside(run.height + tap.height, matrix.extent[1])) {
        if (matrix.samples_innermost) {
          last = run.width >= range.first && run.width < range.last ? run.count : 0;
        } else {
          first = std::clamp<int64_t>(range.first - run.width, 0, run.count);
          last = std::clamp<int64_t>(range.last - run.width, first, run.count);
        }
      }
      const acc_t** const address = table + run.begin;
      const acc_t* const src = matrix.data + run.offset + tap.offset;
      for (int64_t p = 0; p < first; ++p) address[p] = kZeros<acc_t>;
      for (int64_t p = first; p < last; ++p) address[p] = src + p * step;
      for (int64_t p = last; p < run.count; ++p) address[p] = kZeros<acc_t>;
    }
  }
}

// The part of a packed panel of columns that one tap occupies.
template <typename acc_t>
Segment<acc_t> packed_segment(int64_t begin, int64_t count, const acc_t* panel, int64_t width) {
  Segment<acc_t> segment;
  segment.begin = begin;
  segment.count = count;
  segment.row_offset = 0;
  segment.columns = panel + begin * width;
  segment.column_pitch = width;
  std::fill_n(segment.mask, kMaxVecs, ~uint32_t{0});
  return segment;
}

// Makes `segment` read a panel's positions in place, if they are such that it can.
template <typename acc_t>
bool read_in_place(const PatchMatrix<acc_t>& matrix, const RowCopies& copies, int64_t width,
                   Segment<acc_t>& segment) {
  if (copies.count == 0) {  // outside at all positions
    segment.columns = kZeros<acc_t>;
    segment.column_pitch = 0;
    return true;
  }
  const int64_t shift = copies.copy[0].offset - copies.copy[0].begin;
  if constexpr (kMaskedLoads) {
    for (int64_t i = 1; i < copies.count; ++i) {
      if (copies.copy[i].offset - copies.copy[i].begin != shift) return false;
    }
    uint64_t lanes = 0;  // kMaxVecs * 16 bits
    for (int64_t i = 0; i < copies.count; ++i) {
      lanes |= ((uint64_t{1} << copies.copy[i].count) - 1) << copies.copy[i].begin;
    }
    for (int64_t v = 0; v < kMaxVecs; ++v)
      segment.mask[v] = static_cast<uint32_t>(lanes >> (v * kLanes<acc_t>));
  } else if (copies.count > 1 || copies.covered < width) {
    return false;
  }
  segment.columns = matrix.data + shift;
  segment.column_pitch = matrix.depth.stride[3];
  return true;
}

// Copies what a segment of columns reads in place into rows of `width`, whole vectors.
template <typename acc_t>
void copy_segment(const Segment<acc_t>& segment, int64_t width, acc_t* dst) {
  const acc_t* src = segment.columns;
  for (int64_t d = 0; d < segment.count; ++d, src += segment.column_pitch, dst += width) {
    for (int64_t v = 0; v * kLanes<acc_t> < width; ++v) {
      const acc_t* const lane = src + v * kLanes<acc_t>;
      if constexpr (kMaskedLoads) {
        masked_load(segment.mask[v], lane).store(dst + v * kLanes<acc_t>);
      } else {
        Vec<acc_t>::loadu(lane).store(dst + v * kLanes<acc_t>);
      }
    }
  }
}

// A panel of columns as segments, one for each tap, of packed rows with row_step between two steps. Taps that
// cannot be read in place are packed into `panel`, and all of them are where in_place is not set.
template <typename acc_t>
int64_t segment_columns(const PatchMatrix<acc_t>& matrix, const PositionRuns& positions, const TapRuns& taps,
                        bool in_place, int64_t row_step, int64_t width, acc_t* panel,
                        Segment<acc_t>* segments) {
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    const RowCopies copies(matrix, positions, tap);
    Segment<acc_t>& segment = segments[t];
    segment = packed_segment<acc_t>(tap.begin, tap.channels, panel, width);
    segment.row_offset = tap.begin * row_step;
    acc_t* const packed = panel + tap.begin * width;
    if (!read_in_place(matrix, copies, width, segment)) {
      pack_contiguous_rows(copies, matrix.data, matrix.depth.stride[3], tap.channels, packed, width, width);
    } else if (!in_place) {
      copy_segment(segment, width, packed);
    }
  }
  if (in_place) return taps.count;
  int64_t depth = 0;
  for (int64_t t = 0; t < taps.count; ++t) depth += taps.run[t].channels;
  segments[0] = packed_segment<acc_t>(0, depth, panel, width);
  return 1;
}

}  // namespace fastnn::FASTNN_BACKEND
