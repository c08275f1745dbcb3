// Convolution of few channels, forward, and its data gradient at stride 1, which is a convolution too.
//
//   y[n, k, o] = bias[k] + sum over c, r of x[n, c, o * stride + r * dilation - pad] * w[k, c, r]
//
// A task is a band of rows of one image's output. It stages the rows of x that the band sees (conv_staging.h),
// so that step d = (c, r) of the reduction is one offset for all positions, and multiplies all filters with
// them (conv_steps.h). Filters are packed once per call, by the calling thread: some thousand elements.
//
// Either operand may be columns, that is vectors:
//
//   filters    positions are broadcast from wherever they are, at any stride; no lane is wasted where K is a
//              multiple of the vector. Channels-last y is written directly; channels-first y by squares of
//              vectors that change rows and columns, which costs 6 cycles a vector of outputs beside its C * R
//              steps.
//   positions  of a row of y, which is written directly in channels-first memory; staged columns are sorted by
//              their residue modulo the stride. Wastes lanes where rows are no multiple of the vector.
//
// Bound by multiply-adds, N K |out| C R of them, but for 27 steps (3 x 3 x 3) and y in main memory, where
// writing it costs as much.
//
// Error: that of the general product, sums of at most 256 products, then a chain over those and the bias.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_activation.h"
#include "conv_patches.h"
#include "conv_product.h"
#include "conv_staging.h"
#include "conv_steps.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// Longest reduction: its table of steps, 8 KB, stays in L1. So does that of a band's positions.
inline constexpr int64_t kMaxSteps = 1024;
inline constexpr int64_t kMaxBandPositions = 1024;

// Sums that are not written to y directly, 32 KB on the stack.
inline constexpr int64_t kSumElements = 8 << 10;

// What changing places of a vector of outputs costs, in steps of the reduction.
inline constexpr int64_t kTransposeSteps = 6;

template <typename scalar_t>
struct StagedGather {
  PlaneGeometry geometry;
  Images<scalar_t> images;
  const scalar_t* w;
  int64_t w_filter_stride, w_channel_stride, w_tap_stride[2];
  bool mirrored;  // tap (r, s) of w is at place (kernel[0] - 1 - r, kernel[1] - 1 - s)
  const scalar_t* bias;
  scalar_t* y;
  int64_t y_n_stride, y_filter_stride, y_stride[2];
  ConvActivation activation;
};

inline PlaneGeometry plane_geometry(const ConvGeometry& g) {
  return {g.N,
          g.C,
          g.K,
          {g.in[1], g.in[2]},
          {g.out[1], g.out[2]},
          {g.kernel[1], g.kernel[2]},
          {g.stride[1], g.stride[2]},
          {g.pad[1], g.pad[2]},
          {g.dilation[1], g.dilation[2]}};
}

// At stride 1 grad_x is the convolution of grad_y, padded by what the filter reaches beyond the padding of x,
// with mirrored filters and the roles of C and K exchanged.
inline PlaneGeometry grad_input_geometry(const ConvGeometry& geometry) {
  PlaneGeometry g = plane_geometry(geometry);
  std::swap(g.channels, g.filters);
  std::swap(g.in, g.out);
  for (int i = 0; i < 2; ++i) g.pad[i] = (g.kernel[i] - 1) * g.dilation[i] - g.pad[i];
  return g;
}

// Whether a convolution is such that its kernels can work on staged rows.
inline bool staged_rows_fit(const PlaneGeometry& g) {
  return g.depth() <= kMaxSteps && StagedBands(g, kMaxBandPositions).fit(kLanes<float>);
}

template <typename scalar_t>
Images<scalar_t> images_of(const void* data, int64_t channels, const int64_t (&size)[kSpatialDims],
                           const ConvStrides& strides) {
  return {static_cast<const scalar_t*>(data),
          channels,
          size[1],
          size[2],
          strides[0],
          strides[1],
          strides[3],
          strides[4]};
}

template <typename scalar_t>
StagedGather<scalar_t> staged_forward(const ConvForwardParams& params) {
  const ConvStrides &w = params.w_strides, &y = params.y_strides;
  return {plane_geometry(params.geometry),
          images_of<scalar_t>(params.x, params.geometry.C, params.geometry.in, params.x_strides),
          static_cast<const scalar_t*>(params.w),
          w[0],
          w[1],
          {w[3], w[4]},
          false,
          static_cast<const scalar_t*>(params.bias),
          static_cast<scalar_t*>(params.y),
          y[0],
          y[1],
          {y[3], y[4]},
          params.activation};
}

template <typename scalar_t>
StagedGather<scalar_t> staged_grad_input(const ConvGradInputParams& params) {
  const ConvStrides &w = params.w_strides, &x = params.grad_x_strides;
  return {grad_input_geometry(params.geometry),
          images_of<scalar_t>(params.grad_y, params.geometry.K, params.geometry.out, params.grad_y_strides),
          static_cast<const scalar_t*>(params.w),
          w[1],
          w[0],
          {w[3], w[4]},
          true,
          static_cast<const scalar_t*>(params.bias),
          static_cast<scalar_t*>(params.grad_x),
          x[0],
          x[1],
          {x[3], x[4]},
          {}};
}

template <typename scalar_t>
class StagedGatherRunner {
 public:
  using acc_t = acc_type<scalar_t>;

  explicit StagedGatherRunner(const StagedGather<scalar_t>& conv)
      : conv_(conv), g_(conv_.geometry), depth_(g_.depth()), bands_(g_, kMaxBandPositions) {
    const int64_t filter_vecs = ceil_div(g_.filters, kLane), row_vecs = ceil_div(bands_.columns(), kLane);
    // Steps that a row of y takes.
    const int64_t by_filters =
        bands_.columns() * filter_vecs * (depth_ + (conv_.y_filter_stride == 1 ? 0 : kTransposeSteps));
    filters_are_columns_ = conv_.y_stride[1] != 1 || by_filters <= g_.filters * row_vecs * depth_;
    // Panels of even width: 4 vectors are 2 + 2, not 3 + 1. Three vectors and eight rows, or four and six.
    const int64_t most = filters_are_columns_ || g_.filters <= max_step_rows(kStepVecs)
                             ? kStepVecs
                             : std::min<int64_t>(kStepVecs, 3);
    const int64_t vecs = filters_are_columns_ ? filter_vecs : row_vecs;
    vecs_ = ceil_div(vecs, ceil_div(vecs, most));
    panel_ =
        filters_are_columns_ ? vecs_ * kLane : ceil_div(g_.filters, ceil_div(g_.filters, max_step_rows(vecs_)));
    panels_ = ceil_div(g_.filters, panel_);
    layout_ = StagedLayout(g_.channels, g_.seen(1, bands_.columns()),
                           filters_are_columns_ && conv_.images.channel_stride == 1 && g_.channels > 1,
                           filters_are_columns_ ? 1 : g_.stride[1]);
  }

  // [panel][step][filter of the panel], then the bias of all panels' filters.
  int64_t workspace_bytes() const {
    return panels_ * panel_ * (depth_ + 1) * static_cast<int64_t>(sizeof(acc_t));
  }

  void run(void* workspace) {
    if (bands_.count() == 0) return;
    packed_ = static_cast<acc_t*>(workspace);
    bias_ = packed_ + panels_ * panel_ * depth_;
    Step steps[kMaxSteps];
    prepare(steps);
    const int64_t threads = std::max<int64_t>(
        1, std::min<int64_t>(at::get_num_threads(), g_.multiply_adds() / kMinMultiplyAddsPerThread));
    if (threads > 1) bands_.cut(threads * kTilesPerThread);
    parallel_for(bands_.count(), ceil_div(bands_.count(), threads), [&](int64_t first, int64_t last) {
      alignas(64) acc_t staged[kStagedElements + kStagedSlack];
      alignas(64) acc_t sums[kSumElements];
      fill_zero(staged + kStagedElements, kStagedSlack);
      int32_t position[kMaxBandPositions];
      list_positions(position);
      for (int64_t index = first; index < last; ++index) {
        const Band band = bands_[index];
        conv_.images.stage(band, layout_, staged);
        LinePrefetch next;
        if (index + 1 < last) next = conv_.images.prefetch(bands_[index + 1], band, layout_, micro_tiles(band));
        if (filters_are_columns_) {
          multiply_filter_columns(band, steps, staged, position, sums, next);
        } else {
          multiply_position_columns(band, steps, staged, sums, next);
        }
        activate(band);
      }
    });
  }

 private:
  static constexpr int64_t kLane = kLanes<acc_t>;

  // About as many as a band takes.
  int64_t micro_tiles(const Band& band) const {
    return panels_ * (filters_are_columns_ ? ceil_div(band.rows * band.columns, max_step_rows(vecs_))
                                           : band.rows * ceil_div(band.columns, vecs_ * kLane));
  }

  // Packs the filters and lists the steps, in the order in which a filter lies in memory.
  void prepare(Step* steps) {
    const int64_t channels = g_.channels, rows = g_.kernel[0], columns = g_.kernel[1];
    const int64_t c_stride = conv_.w_channel_stride, r_stride = conv_.w_tap_stride[0],
                  s_stride = conv_.w_tap_stride[1];
    const bool channels_innermost = c_stride < s_stride;
    Axis axis = channels_innermost ? Axis{{1, rows, columns, channels}, {0, r_stride, s_stride, c_stride}}
                                   : Axis{{1, channels, rows, columns}, {0, c_stride, r_stride, s_stride}};
    AxisCursor cursor(axis, 0);
    for (int64_t d = 0; d < depth_; ++d, cursor.advance(1)) {
      const int64_t* const index = cursor.index + 1;
      const int64_t c = index[channels_innermost ? 2 : 0];
      int64_t r = index[channels_innermost ? 0 : 1], s = index[channels_innermost ? 1 : 2];
      if (conv_.mirrored) {
        r = rows - 1 - r;
        s = columns - 1 - s;
      }
      const int32_t in_image = layout_.offset(c, r * g_.dilation[0], s * g_.dilation[1]);
      const int32_t in_panel = static_cast<int32_t>(d * panel_);
      steps[d] = filters_are_columns_ ? Step{in_image, in_panel} : Step{in_panel, in_image};
    }
    axis.merge();
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = panel * panel_, count = std::min(panel_, g_.filters - first);
      acc_t* const dst = packed_ + first * depth_;
      if (count < panel_) fill_zero(dst, panel_ * depth_);
      pack_panel(axis, conv_.w + first * conv_.w_filter_stride, count, dst);
      fill_zero(bias_ + first, panel_);
      if (conv_.bias != nullptr) copy_run(bias_ + first, conv_.bias + first, count);
    }
  }

  void pack_panel(const Axis& axis, const scalar_t* src, int64_t count, acc_t* dst) const {
    AxisCursor cursor(axis, 0);
    for (int64_t d = 0; d < depth_;) {
      const int64_t length = cursor.run(depth_ - d);
      const scalar_t* const run = src + cursor.offset();
      if (axis.stride[3] == 1 && conv_.w_filter_stride != 1) {
        copy_transposed(run, conv_.w_filter_stride, count, length, dst + d * panel_, panel_);
      } else {
        for (int64_t i = 0; i < length; ++i) {
          copy_run(dst + (d + i) * panel_, run + i * axis.stride[3], conv_.w_filter_stride, count);
        }
      }
      cursor.advance(length);
      d += length;
    }
  }

  // Offsets of a band's positions in the staged rows.
  void list_positions(int32_t* position) const {
    for (int64_t row = 0; row < bands_.rows(); ++row) {
      for (int64_t column = 0; column < bands_.columns(); ++column) {
        *position++ = layout_.offset(0, row * g_.stride[0], column * g_.stride[1]);
      }
    }
  }

  // The whole reduction of a micro-tile, in pieces of kDepthBlock steps.
  void multiply(int64_t rows, int64_t vecs, const Step* steps, const acc_t* a, const int32_t* row,
                const acc_t* b, const acc_t* base, int64_t base_pitch, acc_t* c, int64_t c_pitch) const {
    const StepKernel<acc_t> kernel = select_step_kernel<acc_t>(rows, vecs);
    for (int64_t d = 0; d < depth_; d += kDepthBlock) {
      kernel(steps + d, std::min(kDepthBlock, depth_ - d), a, row, b, base, base_pitch, c, c_pitch);
      base = c;
      base_pitch = c_pitch;
    }
  }

  scalar_t* output(const Band& band, int64_t filter) const {
    return conv_.y + band.n * conv_.y_n_stride + filter * conv_.y_filter_stride + band.row * conv_.y_stride[0] +
           band.column * conv_.y_stride[1];
  }

  void activate(const Band& band) const {
    const ConvActivator<scalar_t> activator(conv_.activation);
    if (!activator) return;
    for (int64_t row = 0; row < band.rows; ++row) {
      activator.run(output(band, 0) + row * conv_.y_stride[0], g_.filters, conv_.y_filter_stride, band.columns,
                    conv_.y_stride[1]);
    }
  }

  void multiply_filter_columns(const Band& band, const Step* steps, const acc_t* staged,
                               const int32_t* position, acc_t* sums, LinePrefetch& next) const {
    // Rows that continue each other in y, and in the table, are one run of positions.
    const bool joined =
        conv_.y_stride[0] == band.columns * conv_.y_stride[1] && band.columns == bands_.columns();
    const int64_t runs = joined ? 1 : band.rows, length = joined ? band.rows * band.columns : band.columns;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      for (int64_t run = 0; run < runs; ++run) {
        multiply_run(panel, steps, staged, position + run * bands_.columns(), length,
                     output(band, panel * panel_) + run * conv_.y_stride[0], sums, next);
      }
    }
  }

  // A panel of filters at a run of positions.
  void multiply_run(int64_t panel, const Step* steps, const acc_t* staged, const int32_t* position,
                    int64_t length, scalar_t* y, acc_t* sums, LinePrefetch& next) const {
    const int64_t first = panel * panel_, filters = std::min(panel_, g_.filters - first);
    const int64_t vecs = ceil_div(filters, kLane), max_rows = max_step_rows(vecs);
    const int64_t y_stride = conv_.y_stride[1];
    const bool direct = std::is_same_v<scalar_t, acc_t> && conv_.y_filter_stride == 1 && filters % kLane == 0;
    const int64_t limit = direct ? length : kSumElements / panel_;
    for (int64_t p = 0; p < length; p += limit) {
      const int64_t count = std::min(limit, length - p);
      // Micro-tiles of even height.
      const int64_t tiles = ceil_div(count, max_rows), height = count / tiles;
      int64_t taller = count - tiles * height;
      LinePrefetch lines;
      if (!direct && y_stride == 1) {
        lines = LinePrefetch(y + p, filters, conv_.y_filter_stride * sizeof(scalar_t), 1, 0,
                             count * sizeof(scalar_t), tiles);
      }
      for (int64_t i = 0; i < count; --taller) {
        const int64_t rows = height + (taller > 0 ? 1 : 0);
        acc_t* c = sums + i * panel_;
        int64_t c_pitch = panel_;
        if constexpr (std::is_same_v<scalar_t, acc_t>) {
          if (direct) {
            c = y + i * y_stride;
            c_pitch = y_stride;
          }
        }
        multiply(rows, vecs, steps, staged, position + p + i, packed_ + first * depth_, bias_ + first, 0, c,
                 c_pitch);
        lines.template advance<true>();
        next.template advance<false>();
        i += rows;
      }
      if (!direct) store_positions(sums, count, filters, y + p * y_stride);
    }
  }

  // Writes the filters of sums[position][panel_].
  void store_positions(const acc_t* sums, int64_t positions, int64_t filters, scalar_t* y) const {
    const int64_t stride = conv_.y_stride[1], filter_stride = conv_.y_filter_stride;
    if (filter_stride == 1) {
      for (int64_t p = 0; p < positions; ++p) store_run(y + p * stride, sums + p * panel_, filters);
      return;
    }
    if (stride != 1) {
      for (int64_t p = 0; p < positions; ++p) {
        for (int64_t k = 0; k < filters; ++k) {
          y[p * stride + k * filter_stride] = static_cast<scalar_t>(sums[p * panel_ + k]);
        }
      }
      return;
    }
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      copy_transposed(sums, panel_, positions, filters, y, filter_stride);
    } else {
      alignas(64) acc_t square[kLane * kLane];
      for (int64_t p = 0; p < positions; p += kLane) {
        const int64_t count = std::min(kLane, positions - p);
        for (int64_t k = 0; k < filters; k += kLane) {
          const int64_t rows = std::min(kLane, filters - k);
          copy_transposed(sums + p * panel_ + k, panel_, count, rows, square, kLane);
          for (int64_t i = 0; i < rows; ++i)
            store_run(y + (k + i) * filter_stride + p, square + i * kLane, count);
        }
      }
    }
  }

  // Columns of y are neighbours.
  void multiply_position_columns(const Band& band, const Step* steps, const acc_t* staged, acc_t* sums,
                                 LinePrefetch& next) const {
    static constexpr int32_t kRow[kStepRows] = {0, 1, 2, 3, 4, 5, 6, 7};
    constexpr int64_t bias_pitch = kStepVecs * kLane;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t first = panel * panel_, filters = std::min(panel_, g_.filters - first);
      const acc_t* const a = packed_ + first * depth_;
      alignas(64) acc_t bias[kStepRows * bias_pitch];
      for (int64_t m = 0; m < filters; ++m) std::fill_n(bias + m * bias_pitch, bias_pitch, bias_[first + m]);
      for (int64_t row = 0; row < band.rows; ++row) {
        scalar_t* const y = output(band, first) + row * conv_.y_stride[0];
        const acc_t* const b = staged + row * g_.stride[0] * layout_.row_pitch;
        for (int64_t column = 0; column < band.columns; column += vecs_ * kLane) {
          const int64_t count = std::min(vecs_ * kLane, band.columns - column);
          const int64_t vecs = ceil_div(count, kLane);
          next.template advance<false>();
          if constexpr (std::is_same_v<scalar_t, acc_t>) {
            if (count == vecs * kLane) {
              multiply(filters, vecs, steps, a, kRow, b + column, bias, bias_pitch, y + column,
                       conv_.y_filter_stride);
              continue;
            }
          }
          multiply(filters, vecs, steps, a, kRow, b + column, bias, bias_pitch, sums, vecs * kLane);
          for (int64_t m = 0; m < filters; ++m) {
            store_run(y + m * conv_.y_filter_stride + column, sums + m * vecs * kLane, count);
          }
        }
      }
    }
  }

  const StagedGather<scalar_t> conv_;
  const PlaneGeometry& g_;
  const int64_t depth_;
  StagedBands bands_;
  StagedLayout layout_{};
  bool filters_are_columns_ = false;
  int64_t vecs_ = 0, panel_ = 0, panels_ = 0;  // vectors of a micro-tile's columns; panels of filters
  acc_t *packed_ = nullptr, *bias_ = nullptr;
};

}  // namespace fastnn::FASTNN_BACKEND
