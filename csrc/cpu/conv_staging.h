// Rows of an image copied to where a convolution with few channels finds each of its patches by adding an
// offset.
//
// The copy has zeros where the filter hangs over the image's edge, so that kernels know no edges; it is in the
// accumulation type; and columns may be sorted by their residue modulo the stride, so that neighbouring
// positions are neighbours in memory. An element is copied once for a band of rows of the output and then read
// K taps / stride times (72 times for 32 filters 3x3/2), from L1 or L2: the copy costs 2 to 5 % of the time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_patches.h"
#include "conv_product.h"

namespace fastnn::FASTNN_BACKEND {

// Elements of a staged band: 40 KB, on the stack of the thread that works on it. Behind them lies what vectors
// that begin in the band may touch.
inline constexpr int64_t kStagedElements = 10 << 10;
inline constexpr int64_t kStagedSlack = 64;

// A convolution of one group over planes: index 0 is the height, 1 the width.
struct PlaneGeometry {
  int64_t N, channels, filters;
  int64_t in[2], out[2], kernel[2], stride[2], pad[2], dilation[2];

  int64_t depth() const { return channels * kernel[0] * kernel[1]; }
  // Rows (of dimension 0) or columns (1) that so many positions see.
  int64_t seen(int dim, int64_t positions) const {
    return (positions - 1) * stride[dim] + (kernel[dim] - 1) * dilation[dim] + 1;
  }
  double multiply_adds() const { return static_cast<double>(N) * out[0] * out[1] * filters * depth(); }
};

// Where a staged row has its elements.
struct StagedLayout {
  int64_t channels, columns;
  bool interleaved;  // channels next to each other, else columns
  int64_t phases;    // columns with one residue modulo this are together (1 when interleaved)
  int64_t channel_pitch, phase_pitch, row_pitch;

  StagedLayout() = default;
  StagedLayout(int64_t channels, int64_t columns, bool interleaved, int64_t phases)
      : channels(channels),
        columns(columns),
        interleaved(interleaved),
        phases(phases),
        channel_pitch(interleaved ? 1 : round_up(columns, phases)),
        phase_pitch(channel_pitch / phases),
        row_pitch(interleaved ? columns * channels : channels * channel_pitch) {}

  int32_t offset(int64_t channel, int64_t row, int64_t column) const {
    const int64_t in_row = interleaved
                               ? column * channels + channel
                               : channel * channel_pitch + column % phases * phase_pitch + column / phases;
    return static_cast<int32_t>(row * row_pitch + in_row);
  }
};

// Some rows of one image's output, and what they see of the image.
struct Band {
  int64_t n, row, rows, column, columns;
  int64_t first_seen, rows_seen, first_column;  // may begin before the image and end after it
};

// Cuts the output into bands that fit into the staging buffer.
class StagedBands {
 public:
  StagedBands(const PlaneGeometry& g, int64_t max_positions) : g_(g) {
    // As many columns as leave room for one row of positions, then as many rows. A channel's columns are
    // rounded up to the stride.
    const int64_t columns = kStagedElements / (g.channels * g.seen(0, 1)) - g.seen(1, 1) - g.stride[1];
    if (columns < 0) return;
    columns_ = std::min({g.out[1], columns / g.stride[1] + 1, max_positions});
    column_bands_ = ceil_div(g.out[1], columns_);
    columns_ = ceil_div(g.out[1], column_bands_);
    const int64_t rows = kStagedElements / (g.channels * (g.seen(1, columns_) + g.stride[1]));
    cut_rows(std::min((rows - g.seen(0, 1)) / g.stride[0] + 1, max_positions / columns_));
  }

  // Columns of a band are all, or at least as many as make rows of the output worth the copy.
  bool fit(int64_t least) const { return columns_ >= std::min(g_.out[1], least); }

  // Makes at least `count` bands if rows can be cut that short.
  void cut(int64_t count) {
    const int64_t others = g_.N * column_bands_;
    if (others * row_bands_ < count) cut_rows(g_.out[0] / ceil_div(count, others));
  }

  int64_t count() const { return g_.N * row_bands_ * column_bands_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  Band operator[](int64_t index) const {
    Band band;
    band.column = index % column_bands_ * columns_;
    band.columns = std::min(columns_, g_.out[1] - band.column);
    index /= column_bands_;
    band.row = index % row_bands_ * rows_;
    band.rows = std::min(rows_, g_.out[0] - band.row);
    band.n = index / row_bands_;
    band.first_seen = band.row * g_.stride[0] - g_.pad[0];
    band.rows_seen = g_.seen(0, band.rows);
    band.first_column = band.column * g_.stride[1] - g_.pad[1];
    return band;
  }

 private:
  void cut_rows(int64_t most) {
    rows_ = std::clamp<int64_t>(most, 1, g_.out[0]);
    row_bands_ = ceil_div(g_.out[0], rows_);
    rows_ = ceil_div(g_.out[0], row_bands_);
    row_bands_ = ceil_div(g_.out[0], rows_);
  }

  PlaneGeometry g_;
  int64_t rows_ = 0, columns_ = 0, row_bands_ = 0, column_bands_ = 0;
};

// Lines that will be needed soon, fetched a few at a time between other work: all at once they would fill the
// queue of misses and stop it. Rows of `bytes` bytes in planes, in so many calls.
class LinePrefetch {
 public:
  LinePrefetch() = default;
  LinePrefetch(const void* begin, int64_t planes, int64_t plane_stride, int64_t rows, int64_t row_stride,
               int64_t bytes, int64_t calls)
      : plane_(static_cast<const char*>(begin)),
        row_(plane_),
        rows_left_(rows),
        rows_(rows),
        plane_stride_(plane_stride),
        row_stride_(row_stride),
        bytes_(bytes),
        planes_left_(rows > 0 && bytes > 0 ? planes : 0),
        lines_per_call_(ceil_div(planes * rows * (bytes / kLine + 1), std::max<int64_t>(1, calls))) {}

  template <bool write>
  void advance() {
    for (int64_t i = 0; i < lines_per_call_ && planes_left_ > 0; ++i) {
      __builtin_prefetch(row_ + at_, write ? 1 : 0, write ? 3 : 2);
      at_ += kLine;
      if (at_ < bytes_) continue;
      at_ = 0;
      row_ += row_stride_;
      if (--rows_left_ > 0) continue;
      rows_left_ = rows_;
      plane_ += plane_stride_;
      row_ = plane_;
      --planes_left_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char *plane_ = nullptr, *row_ = nullptr;
  int64_t at_ = 0, rows_left_ = 0, rows_ = 0, plane_stride_ = 0, row_stride_ = 0, bytes_ = 0, planes_left_ = 0;
  int64_t lines_per_call_ = 0;
};

// The images of a tensor, with element strides.
template <typename scalar_t>
struct Images {
  const scalar_t* data;
  int64_t channels, height, width;
  int64_t n_stride, channel_stride, row_stride, column_stride;

  // Copies what a band sees; what is outside is 0.
  void stage(const Band& band, const StagedLayout& layout, acc_type<scalar_t>* dst) const {
    const int64_t begin = std::clamp<int64_t>(-band.first_column, 0, layout.columns);
    const int64_t end = std::clamp(width - band.first_column, begin, layout.columns);
    const scalar_t* src =
        data + band.n * n_stride + band.first_seen * row_stride + band.first_column * column_stride;
    for (int64_t r = 0; r < band.rows_seen; ++r, dst += layout.row_pitch, src += row_stride) {
      if (!inside(band.first_seen + r, height)) {
        fill_zero(dst, layout.row_pitch);
      } else if (layout.interleaved) {
        stage_interleaved(src, begin, end, layout, dst);
      } else {
        stage_planes(src, begin, end, layout, dst);
      }
    }
  }

  // Fetches what stage(next) will read and stage(band) did not.
  LinePrefetch prefetch(const Band& next, const Band& band, const StagedLayout& layout, int64_t calls) const {
    constexpr int64_t size = sizeof(scalar_t);
    int64_t first = next.first_seen;
    if (next.n == band.n && next.column == band.column)
      first = std::max(first, band.first_seen + band.rows_seen);
    first = std::clamp<int64_t>(first, 0, height);
    const int64_t last = std::clamp(next.first_seen + next.rows_seen, first, height);
    const int64_t begin = std::clamp<int64_t>(next.first_column, 0, width);
    const int64_t end = std::clamp(next.first_column + layout.columns, begin, width);
    const scalar_t* const src = data + next.n * n_stride + first * row_stride + begin * column_stride;
    return LinePrefetch(src, layout.interleaved ? 1 : channels, channel_stride * size, last - first,
                        row_stride * size, (end - begin) * column_stride * size, calls);
  }

 private:
  // Columns [begin, end) are inside; src is where column 0 is or would be.
  void stage_interleaved(const scalar_t* src, int64_t begin, int64_t end, const StagedLayout& layout,
                         acc_type<scalar_t>* dst) const {
    fill_zero(dst, begin * channels);
    if (column_stride == channels) {
      copy_run(dst + begin * channels, src + begin * channels, (end - begin) * channels);
    } else {
      for (int64_t i = begin; i < end; ++i) copy_run(dst + i * channels, src + i * column_stride, channels);
    }
    fill_zero(dst + end * channels, (layout.columns - end) * channels);
  }

  void stage_planes(const scalar_t* src, int64_t begin, int64_t end, const StagedLayout& layout,
                    acc_type<scalar_t>* dst) const {
    const int64_t phases = layout.phases, pitch = layout.phase_pitch;
    for (int64_t c = 0; c < channels; ++c, src += channel_stride) {
      for (int64_t phase = 0; phase < phases; ++phase, dst += pitch) {
        // Column phase + i * phases is inside for i in [first, last).
        const int64_t first = ceil_div(std::max<int64_t>(0, begin - phase), phases);
        const int64_t last = std::max(first, ceil_div(std::max<int64_t>(0, end - phase), phases));
        fill_zero(dst, first);
        copy_run(dst + first, src + (phase + first * phases) * column_stride, phases * column_stride,
                 last - first);
        fill_zero(dst + last, pitch - last);
      }
    }
  }
};

}  // namespace fastnn::FASTNN_BACKEND
