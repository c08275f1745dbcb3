// A tensor seen as the matrix of its patches, and the routines that pack pieces of that matrix.
//
// Row p of the matrix is a position (of the output, for x in the forward direction), column d is a place within
// the patch that belongs to it: a tap of the filter, and within the tap a channel. Nothing of it exists in
// memory but the panels that the micro-kernel is about to read. Weights are such a matrix too (positions are
// filters, nothing is ever outside), so one pair of routines packs every operand of every direction.
//
// Channels are innermost because the set of positions where a tap falls outside does not depend on the channel:
// it is found once per tap and used for all of them.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../ops/conv.h"
#include "conv_gemm.h"
#include "conv_masked_load.h"
#include "conv_transpose.h"
#include "dispatch.h"

namespace fastnn::FASTNN_BACKEND {

// An index that counts through four nested dimensions, the last one fastest, and where it points in memory.
struct Axis {
  int64_t size[4];
  int64_t stride[4];

  int64_t length() const { return size[0] * size[1] * size[2] * size[3]; }

  // Makes the first dimension the innermost.
  void rotate() {
    std::rotate(size, size + 1, size + 4);
    std::rotate(stride, stride + 1, stride + 4);
  }

  // [N, D, H, W] becomes [N / count, H, W, count] where there is no depth, so that neighbouring places are not
  // N rows apart, and returns true; or else [D, H, W, N]. count divides N.
  bool put_samples_innermost(int64_t count) {
    if (size[1] > 1) {
      rotate();
      return false;
    }
    *this = {{size[0] / count, size[2], size[3], count}, {count * stride[0], stride[2], stride[3], stride[0]}};
    return true;
  }

  // Joins dimensions that are one run in memory, so that runs are as long as they can be.
  void merge() {
    int last = 3;
    for (int i = 2; i >= 0; --i) {
      if (size[i] == 1) continue;
      if (size[last] == 1) {
        size[last] = size[i];
        stride[last] = stride[i];
      } else if (stride[i] == size[last] * stride[last]) {
        size[last] *= size[i];
      } else {
        --last;
        size[last] = size[i];
        stride[last] = stride[i];
      }
    }
    for (int i = 0; i < last; ++i) {
      size[i] = 1;
      stride[i] = 0;
    }
  }
};

// A place on an Axis. Dividing happens at the start only.
struct AxisCursor {
  const Axis& axis;
  int64_t index[4];

  AxisCursor(const Axis& axis, int64_t linear) : axis(axis) {
    for (int i = 3; i > 0; --i) {
      index[i] = linear % axis.size[i];
      linear /= axis.size[i];
    }
    index[0] = linear;
  }

  int64_t offset() const {
    return index[0] * axis.stride[0] + index[1] * axis.stride[1] + index[2] * axis.stride[2] +
           index[3] * axis.stride[3];
  }

  // Indices left in the innermost dimension, at most `limit`.
  int64_t run(int64_t limit) const { return std::min(limit, axis.size[3] - index[3]); }

  // count is at most run().
  void advance(int64_t count) {
    index[3] += count;
    for (int i = 3; i > 0 && index[i] == axis.size[i]; --i) {
      index[i] = 0;
      ++index[i - 1];
    }
  }
};

template <typename scalar_t>
struct PatchMatrix {
  const scalar_t* data;
  int64_t origin_offset;  // where position 0, tap 0, channel 0 is relative to data; may be outside the tensor
  Axis positions;         // n, then three spatial dimensions
  Axis depth;             // three dimensions of taps, then channels
  // Spatial coordinate i of (position, tap): position[i + 1] * step[i] + tap[i] * tap_step[i] + origin[i].
  // The element counts as zero unless every coordinate lies in [0, extent).
  int64_t step[kSpatialDims];
  int64_t tap_step[kSpatialDims];
  int64_t origin[kSpatialDims];
  int64_t extent[kSpatialDims];
  // Positions are counted with n innermost instead: three spatial dimensions, then n. Without depth, whose step
  // is 0 then, the first of them may count n too.
  bool samples_innermost = false;

  bool has_outside() const { return step[0] + step[1] + step[2] > 0; }

  // When no element is outside, coordinates need no watching and dimensions can be joined: a 1x1 filter sees
  // a plain matrix, and weights stored channels-last are rows without a gap.
  void simplify() {
    for (int i = 0; i < kSpatialDims; ++i) {
      const int64_t tap_span = (depth.size[i] - 1) * tap_step[i];
      const int64_t lowest = origin[i] + std::min<int64_t>(tap_span, 0);
      const int64_t highest =
          origin[i] + std::max<int64_t>(tap_span, 0) + (positions.size[i + 1] - 1) * step[i];
      if (lowest < 0 || highest >= extent[i]) return;
    }
    for (int i = 0; i < kSpatialDims; ++i) {
      step[i] = tap_step[i] = origin[i] = 0;
      extent[i] = 1;
    }
    positions.merge();
    depth.merge();
  }
};

template <typename acc_t, int64_t half>
void copy_short(acc_t* dst, const acc_t* src, int64_t count) {
  if constexpr (half > 0) {
    if (count >= half) {
      // Two copies of fixed size that may overlap.
      std::memcpy(dst, src, half * sizeof(acc_t));
      std::memcpy(dst + count - half, src + count - half, half * sizeof(acc_t));
    } else {
      copy_short<acc_t, half / 2>(dst, src, count);
    }
  }
}

template <typename scalar_t>
Vec<acc_type<scalar_t>> load_as_acc(const scalar_t* src) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    return Vec<acc_t>::loadu(src);
  } else {
    Vec<acc_t> value;
    at::vec::load_to_float<scalar_t>(src, value);
    return value;
  }
}

// dst[i] = src[i]. The last vector of a run overlaps the one before it instead of being masked.
template <typename scalar_t>
void copy_run(acc_type<scalar_t>* dst, const scalar_t* src, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t lanes = kLanes<acc_t>;
  if (count >= lanes) {
    for (int64_t i = 0; i + lanes < count; i += lanes) load_as_acc(src + i).store(dst + i);
    load_as_acc(src + count - lanes).store(dst + count - lanes);
  } else if constexpr (std::is_same_v<scalar_t, acc_t>) {
    copy_short<acc_t, lanes / 2>(dst, src, count);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<acc_t>(src[i]);
  }
}

template <typename scalar_t>
void copy_run(acc_type<scalar_t>* dst, const scalar_t* src, int64_t src_stride, int64_t count) {
  if (src_stride == 1) return copy_run(dst, src, count);
  if constexpr (std::is_same_v<scalar_t, acc_type<scalar_t>>) {
    // Every other element, as positions are at stride 2. The second load may not touch what follows the last.
    constexpr int64_t lanes = kLanes<scalar_t>;
    const auto even = [&](int64_t first) {
      const scalar_t* const pair = src + 2 * first;
      at::vec::deinterleave2(Vec<scalar_t>::loadu(pair), Vec<scalar_t>::loadu(pair + lanes, lanes - 1))
          .first.store(dst + first);
    };
    if (src_stride == 2 && count >= lanes) {
      for (int64_t i = 0; i + lanes < count; i += lanes) even(i);
      even(count - lanes);
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<acc_type<scalar_t>>(src[i * src_stride]);
}

// dst[i] = src[i], rounded.
template <typename out_t, typename acc_t>
void store_run(out_t* dst, const acc_t* src, int64_t count) {
  if constexpr (std::is_same_v<out_t, acc_t>) {
    copy_run(dst, src, count);
  } else {
    constexpr int64_t lanes = kLanes<acc_t>;
    int64_t i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
      at::vec::convert_from_float<out_t>(Vec<acc_t>::loadu(src + i), Vec<acc_t>::loadu(src + i + lanes))
          .store(dst + i);
    }
    for (; i < count; ++i) dst[i] = static_cast<out_t>(src[i]);
  }
}

// The first `count` lanes from memory, 0 in the others.
template <typename scalar_t>
Vec<acc_type<scalar_t>> load_channels(const scalar_t* src, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  if (count >= kLanes<acc_t>) return load_as_acc(src);
  acc_t lane[kLanes<acc_t>] = {};
  copy_run(lane, src, count);
  return Vec<acc_t>::loadu(lane);
}

template <typename scalar_t>
void store_channels(scalar_t* dst, Vec<acc_type<scalar_t>> value, int64_t count) {
  using acc_t = acc_type<scalar_t>;
  acc_t lane[kLanes<acc_t>];
  value.store(lane);
  store_run(dst, lane, std::min(count, kLanes<acc_t>));
}

template <typename acc_t>
void fill_zero(acc_t* dst, int64_t count) {
  for (int64_t i = 0; i < count; ++i) dst[i] = acc_t(0);
}

// Consecutive positions that differ in the last coordinate alone.
struct PositionRun {
  int64_t begin, count;   // within the panel
  int64_t offset;         // of the first one, at tap 0 and channel 0
  int64_t depth, height;  // coordinates at tap 0
  int64_t width;          // index on the positions axis, not yet a coordinate; of all where n is innermost
};

// A panel spans at most this many positions, or columns of the patch matrix.
inline constexpr int64_t kMaxPanelSpan = std::max<int64_t>(kDepthBlock, kMaxVecs * 16);

// The positions [first, last) of a patch matrix as runs; last - first <= kMaxPanelSpan.
struct PositionRuns {
  int64_t count = 0;
  PositionRun run[kMaxPanelSpan];

  template <typename scalar_t>
  PositionRuns(const PatchMatrix<scalar_t>& matrix, int64_t first, int64_t last) {
    if (first >= last) return;  // an empty axis has no cursor
    AxisCursor cursor(matrix.positions, first);
    const int64_t* const spatial = cursor.index + (matrix.samples_innermost ? 0 : 1);
    for (int64_t p = first; p < last;) {
      const int64_t length = cursor.run(last - p);
      run[count++] = {p - first,
                      length,
                      matrix.origin_offset + cursor.offset(),
                      spatial[0] * matrix.step[0] + matrix.origin[0],
                      spatial[1] * matrix.step[1] + matrix.origin[1],
                      spatial[2]};
      cursor.advance(length);
      p += length;
    }
  }
};

// One tap, and those of its channels that a panel holds.
struct TapRun {
  int64_t begin, channels;       // columns within the panel
  int64_t offset;                // relative to tap 0, channel 0
  int64_t depth, height, width;  // what the tap adds to the coordinates; width: with the origin
};

struct TapRuns {
  int64_t count = 0;
  TapRun run[kMaxPanelSpan];

  template <typename scalar_t>
  TapRuns(const PatchMatrix<scalar_t>& matrix, int64_t first, int64_t last) {
    if (first >= last) return;  // residues of grad_input may have no tap
    AxisCursor cursor(matrix.depth, first);
    for (int64_t d = first; d < last;) {
      const int64_t channels = cursor.run(last - d);
      run[count++] = {d - first,
                      channels,
                      cursor.offset(),
                      cursor.index[0] * matrix.tap_step[0],
                      cursor.index[1] * matrix.tap_step[1],
                      cursor.index[2] * matrix.tap_step[2] + matrix.origin[2]};
      cursor.advance(channels);
      d += channels;
    }
  }
};

// True for 0 <= coordinate < extent.
inline bool inside(int64_t coordinate, int64_t extent) {
  return static_cast<uint64_t>(coordinate) < static_cast<uint64_t>(extent);
}

// The indices i >= 0 with 0 <= i * step + origin < extent: [first, last).
struct InsideRange {
  int64_t first, last;

  InsideRange(int64_t step, int64_t origin, int64_t extent) {
    if (step == 0) {
      first = 0;
      last = inside(origin, extent) ? INT64_MAX : 0;
    } else {
      first = origin >= 0 ? 0 : (-origin + step - 1) / step;
      last = origin >= extent ? 0 : (extent - 1 - origin) / step + 1;
    }
  }
};

// A run of elements and its place in a packed row.
struct RowCopy {
  int64_t begin, count, offset;
};

// The parts of a packed row that lie inside for one tap, the same for all its channels; the rest is 0.
struct RowCopies {
  int64_t count = 0, covered = 0;
  RowCopy copy[kMaxPanelSpan];

  template <typename scalar_t>
  RowCopies(const PatchMatrix<scalar_t>& matrix, const PositionRuns& positions, const TapRun& tap) {
    const int64_t stride = matrix.positions.stride[3];
    const InsideRange range(matrix.step[2], tap.width, matrix.extent[2]);
    for (int64_t r = 0; r < positions.count; ++r) {
      const PositionRun& run = positions.run[r];
      if (!inside(run.depth + tap.depth, matrix.extent[0]) ||
          !inside(run.height + tap.height, matrix.extent[1])) {
        continue;
      }
      const int64_t first = std::max(run.width, range.first);
      const int64_t length = std::min(run.width + run.count, range.last) - first;
      if (length <= 0) continue;
      const int64_t skipped = first - run.width;
      const RowCopy next{run.begin + skipped, length, run.offset + tap.offset + skipped * stride};
      covered += length;
      // Rows of an image that continue each other in memory and in the panel are one run.
      RowCopy* const previous = count > 0 ? &copy[count - 1] : nullptr;
      if (previous != nullptr && previous->begin + previous->count == next.begin &&
          previous->offset + previous->count * stride == next.offset) {
        previous->count += length;
      } else {
        copy[count++] = next;
      }
    }
  }
};

// RowCopies of positions `stride` apart, cut at vector boundaries: what MaskedVector merges.
template <int64_t span>
struct RowPieces {
  struct Piece {
    int64_t offset;  // of lane 0, whether that is read or not
    uint32_t mask;
  };
  // A vector boundary cuts at most one run, and vectors have at least two lanes.
  Piece piece[span + span / 2];
  int64_t end[span / 2];  // past the pieces of each vector

  RowPieces() = default;
  RowPieces(const RowCopies& copies, int64_t lanes, int64_t vecs, int64_t stride = 1) {
    int64_t count = 0, next = 0;
    for (int64_t v = 0; v < vecs; ++v) {
      const int64_t vector_begin = v * lanes, vector_end = vector_begin + lanes;
      for (; next < copies.count && copies.copy[next].begin < vector_end; ++next) {
        const RowCopy& copy = copies.copy[next];
        const int64_t first = std::max(copy.begin, vector_begin),
                      last = std::min(copy.begin + copy.count, vector_end);
        piece[count++] = {copy.offset + (vector_begin - copy.begin) * stride,
                          ((uint32_t{1} << (last - first)) - 1) << (first - vector_begin)};
        if (copy.begin + copy.count > vector_end) break;
      }
      end[v] = count;
    }
  }

  template <typename scalar_t>
  Vec<acc_type<scalar_t>> load(const scalar_t* src, int64_t v) const {
    MaskedVector<scalar_t> lanes;
    for (int64_t i = v == 0 ? 0 : end[v - 1]; i < end[v]; ++i)
      lanes.merge(piece[i].mask, src + piece[i].offset);
    return lanes.value();
  }
};

// Fills one row of a panel after the other with the channels of a tap. Positions are contiguous in memory;
// width is a multiple of the vector.
template <typename scalar_t>
void pack_contiguous_rows(const RowCopies& copies, const scalar_t* src, int64_t src_stride, int64_t rows,
                          acc_type<scalar_t>* dst, int64_t pitch, int64_t width) {
#if defined(CPU_CAPABILITY_AVX512)
  constexpr int64_t lanes = kLanes<acc_type<scalar_t>>;
  const int64_t vecs = width / lanes;
  const RowPieces<kMaxPanelSpan> pieces(copies, lanes, vecs);
  for (int64_t row = 0; row < rows; ++row, dst += pitch, src += src_stride) {
    for (int64_t v = 0; v < vecs; ++v) pieces.load(src, v).store(dst + v * lanes);
  }
#else
  for (int64_t row = 0; row < rows; ++row, dst += pitch, src += src_stride) {
    if (copies.covered < width) fill_zero(dst, width);
    for (int64_t i = 0; i < copies.count; ++i) {
      copy_run(dst + copies.copy[i].begin, src + copies.copy[i].offset, copies.copy[i].count);
    }
  }
#endif
}

// Packs with positions contiguous: dst[d * pitch + p]. Rows have `width` elements, a multiple of the vector;
// those after the positions are 0.
template <typename scalar_t>
void pack_positions_contiguous(const PatchMatrix<scalar_t>& matrix, const PositionRuns& positions,
                               const TapRuns& taps, acc_type<scalar_t>* dst, int64_t pitch, int64_t width) {
  const int64_t stride = matrix.positions.stride[3], channel_stride = matrix.depth.stride[3];
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    const RowCopies copies(matrix, positions, tap);
    acc_type<scalar_t>* row = dst + tap.begin * pitch;
    if (stride == 1) {
      pack_contiguous_rows(copies, matrix.data, channel_stride, tap.channels, row, pitch, width);
      continue;
    }
    if (channel_stride == 1 && tap.channels > 1) {
      if (copies.covered < width) {
        for (int64_t c = 0; c < tap.channels; ++c) fill_zero(row + c * pitch, width);
      }
      for (int64_t i = 0; i < copies.count; ++i) {
        copy_transposed(matrix.data + copies.copy[i].offset, stride, copies.copy[i].count, tap.channels,
                        row + copies.copy[i].begin, pitch);
      }
      continue;
    }
    for (int64_t c = 0; c < tap.channels; ++c, row += pitch) {
      if (copies.covered < width) fill_zero(row, width);
      for (int64_t i = 0; i < copies.count; ++i) {
        copy_run(row + copies.copy[i].begin, matrix.data + c * channel_stride + copies.copy[i].offset, stride,
                 copies.copy[i].count);
      }
    }
  }
}

// Packs with columns of the patch matrix contiguous: dst[p * pitch + d]. Rows have `width` elements; those
// after the columns are 0.
template <typename scalar_t>
void pack_depth_contiguous(const PatchMatrix<scalar_t>& matrix, const PositionRuns& positions,
                           const TapRuns& taps, acc_type<scalar_t>* dst, int64_t pitch, int64_t width) {
  const TapRun* const last_tap = taps.count == 0 ? nullptr : &taps.run[taps.count - 1];
  const int64_t columns = last_tap == nullptr ? 0 : last_tap->begin + last_tap->channels;
  const int64_t stride = matrix.depth.stride[3];
  for (int64_t r = 0; r < positions.count; ++r) {
    const PositionRun& run = positions.run[r];
    acc_type<scalar_t>* const rows = dst + run.begin * pitch;
    for (int64_t t = 0; t < taps.count; ++t) {
      const TapRun& tap = taps.run[t];
      int64_t first = 0, last = 0;
      if (inside(run.depth + tap.depth, matrix.extent[0]) &&
          inside(run.height + tap.height, matrix.extent[1])) {
        const InsideRange range(matrix.step[2], tap.width, matrix.extent[2]);
        first = std::clamp<int64_t>(range.first - run.width, 0, run.count);
        last = std::clamp<int64_t>(range.last - run.width, first, run.count);
      }
      acc_type<scalar_t>* row = rows + tap.begin;
      for (int64_t p = 0; p < first; ++p, row += pitch) fill_zero(row, tap.channels);
      const scalar_t* src = matrix.data + run.offset + tap.offset + first * matrix.positions.stride[3];
      if (matrix.positions.stride[3] == 1 && stride != 1) {
        copy_transposed(src, stride, tap.channels, last - first, row, pitch);
        row += (last - first) * pitch;
      } else {
        for (int64_t p = first; p < last; ++p, row += pitch, src += matrix.positions.stride[3]) {
          copy_run(row, src, stride, tap.channels);
        }
      }
      for (int64_t p = last; p < run.count; ++p, row += pitch) fill_zero(row, tap.channels);
    }
    if (columns < width) {
      for (int64_t p = 0; p < run.count; ++p) fill_zero(rows + p * pitch + columns, width - columns);
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND
