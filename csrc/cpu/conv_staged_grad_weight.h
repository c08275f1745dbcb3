// Weight gradient of convolutions with few channels, or of small images.
//
//   grad_w[k, c, r] = sum over n, o of grad_y[n, k, o] * x[n, c, o * stride + r * dilation - pad]
//
// The reduction runs over positions. Rows are the places d = (c, r) of a patch, each an offset from the
// position in staged rows of x (conv_staging.h), and columns are filters: vectors of grad_y, in place where
// channels are contiguous, or else copied with rows and columns exchanged, which costs 6 cycles a vector beside
// its C * R multiply-adds. Nothing of a patch is copied.
//
// Sums of a block of positions stay in registers and are added to [place][filter], which lies in L2. The
// reduction is done in two halves, or in one where it is short, so that memory does not grow with threads; more
// threads than that share out the filters, and then the places, of each half, and stage x each for themselves.
//
// Bound by multiply-adds.
//
// Error: that of the general product, sums of at most 256 products, then a chain over those.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "conv_patches.h"
#include "conv_product.h"
#include "conv_staged_gather.h"
#include "conv_staging.h"
#include "conv_steps.h"
#include "parallel.h"

namespace fastnn::FASTNN_BACKEND {

// Positions whose grad_y is copied at once, for up to 64 filters: kSumElements.
inline constexpr int64_t kGradBlock = kSumElements / (kStepVecs * 16);

// Multiply-adds from which on two threads are worth waking for two halves of the reduction.
inline constexpr double kMinHalvedMultiplyAdds = 2 * kMinMultiplyAddsPerThread;

template <typename scalar_t>
class StagedGradWeight {
 public:
  using acc_t = acc_type<scalar_t>;

  explicit StagedGradWeight(const ConvGradWeightParams& params)
      : params_(params),
        g_(plane_geometry(params.geometry)),
        depth_(g_.depth()),
        images_(images_of<scalar_t>(params.x, params.geometry.C, params.geometry.in, params.x_strides)),
        bands_(g_, kMaxBandPositions) {
    layout_ = StagedLayout(g_.channels, g_.seen(1, bands_.columns()),
                           images_.channel_stride == 1 && g_.channels > 1, 1);
    const int64_t* const y = params.grad_y_strides;
    in_place_ = std::is_same_v<scalar_t, acc_t> && y[1] == 1 && g_.filters % kLane == 0 &&
                bands_.rows() * y[3] + bands_.columns() * y[4] <= INT32_MAX;
    const int64_t threads = std::max<int64_t>(
        1, std::min<int64_t>(at::get_num_threads(), g_.multiply_adds() / kMinMultiplyAddsPerThread));
    halves_ = g_.multiply_adds() >= kMinHalvedMultiplyAdds && bands_.count() > 1 ? 2 : 1;
    // Narrower panels where there would be none for some threads; places are shared out after that.
    const int64_t shares = ceil_div(threads, halves_), vecs = ceil_div(g_.filters, kLane);
    vecs_ = ceil_div(vecs, std::max(ceil_div(vecs, kStepVecs), std::min(vecs, shares)));
    panel_ = vecs_ * kLane;
    panels_ = ceil_div(g_.filters, panel_);
    filter_shares_ = std::min(panels_, shares);
    place_shares_ = std::min(ceil_div(shares, filter_shares_), ceil_div(depth_, kStepRows));
    tasks_per_thread_ = ceil_div(halves_ * filter_shares_ * place_shares_, threads);
  }

  // Sums: [half][panel][place][filter of the panel].
  int64_t workspace_bytes() const {
    return halves_ * panels_ * panel_ * depth_ * static_cast<int64_t>(sizeof(acc_t));
  }

  void run() const {
    int32_t place[kMaxSteps];
    list_places(place);
    const int64_t tasks = halves_ * filter_shares_ * place_shares_;
    parallel_for(tasks, tasks_per_thread_, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t f = task % filter_shares_, p = task / filter_shares_ % place_shares_;
        Share share;
        share.half = task / filter_shares_ / place_shares_;
        share.first_panel = f * panels_ / filter_shares_;
        share.last_panel = (f + 1) * panels_ / filter_shares_;
        share.first_place = p * depth_ / place_shares_;
        share.last_place = (p + 1) * depth_ / place_shares_;
        add_up(share, place);
      }
    });
    store();
  }

 private:
  static constexpr int64_t kLane = kLanes<acc_t>;

  struct Share {
    int64_t half, first_panel, last_panel, first_place, last_place;
  };

  // Places in the order in which a filter's gradient lies in memory.
  Axis places() const {
    const int64_t* const w = params_.grad_w_strides;
    const int64_t channels = g_.channels, rows = g_.kernel[0], columns = g_.kernel[1];
    return channels_innermost() ? Axis{{1, rows, columns, channels}, {0, w[3], w[4], w[1]}}
                                : Axis{{1, channels, rows, columns}, {0, w[1], w[3], w[4]}};
  }
  bool channels_innermost() const { return params_.grad_w_strides[1] < params_.grad_w_strides[4]; }

  // Their offsets from a position, in the staged rows.
  void list_places(int32_t* place) const {
    const Axis axis = places();
    AxisCursor cursor(axis, 0);
    for (int64_t d = 0; d < depth_; ++d, cursor.advance(1)) {
      const int64_t* const i = cursor.index + 1;
      const int64_t c = i[channels_innermost() ? 2 : 0], r = i[channels_innermost() ? 0 : 1],
                    s = i[channels_innermost() ? 1 : 2];
      place[d] = layout_.offset(c, r * g_.dilation[0], s * g_.dilation[1]);
    }
  }

  acc_t* sums(int64_t half, int64_t panel) const {
    return static_cast<acc_t*>(params_.workspace) + (half * panels_ + panel) * depth_ * panel_;
  }

  void add_up(const Share& share, const int32_t* place) const {
    for (int64_t panel = share.first_panel; panel < share.last_panel; ++panel) {
      fill_zero(sums(share.half, panel) + share.first_place * panel_,
                (share.last_place - share.first_place) * panel_);
    }
    alignas(64) acc_t staged[kStagedElements + kStagedSlack];
    alignas(64) acc_t copied[kSumElements] = {};
    Step steps[kMaxBandPositions];
    const int64_t last_band = (share.half + 1) * bands_.count() / halves_;
    for (int64_t index = share.half * bands_.count() / halves_; index < last_band; ++index) {
      const Band band = bands_[index];
      images_.stage(band, layout_, staged);
      const int64_t positions = band.rows * band.columns;
      // Blocks of even length.
      const int64_t blocks = ceil_div(positions, kGradBlock), length = ceil_div(positions, blocks);
      list_steps(band, length, steps);
      for (int64_t panel = share.first_panel; panel < share.last_panel; ++panel) {
        for (int64_t p = 0; p < positions; p += length) {
          const int64_t count = std::min(length, positions - p);
          const acc_t* b = copied;
          if constexpr (std::is_same_v<scalar_t, acc_t>) {
            if (in_place_) b = grad_y(band, panel * panel_);
          }
          if (!in_place_) copy_grad_y(band, panel, p, count, copied);
          multiply_block(share, panel, steps + p, count, staged, place, b);
        }
      }
    }
  }

  const scalar_t* grad_y(const Band& band, int64_t filter) const {
    const int64_t* const y = params_.grad_y_strides;
    return static_cast<const scalar_t*>(params_.grad_y) + band.n * y[0] + filter * y[1] + band.row * y[3] +
           band.column * y[4];
  }

  // Where each position of a band is in the staged rows, and its grad_y: from the band's first position, or
  // from the block's first in the copy.
  void list_steps(const Band& band, int64_t block, Step* step) const {
    const int64_t* const y = params_.grad_y_strides;
    int64_t in_block = 0;
    for (int64_t row = 0; row < band.rows; ++row) {
      for (int64_t column = 0; column < band.columns; ++column) {
        step->a = layout_.offset(0, row * g_.stride[0], column * g_.stride[1]);
        step->b = static_cast<int32_t>(in_place_ ? row * y[3] + column * y[4] : in_block * panel_);
        ++step;
        if (++in_block == block) in_block = 0;
      }
    }
  }

  // Copies a panel of grad_y at positions [begin, begin + count) of the band: dst[position][filter].
  void copy_grad_y(const Band& band, int64_t panel, int64_t begin, int64_t count, acc_t* dst) const {
    const int64_t* const y = params_.grad_y_strides;
    const int64_t filters = std::min(panel_, g_.filters - panel * panel_);
    Axis axis{{1, 1, band.rows, band.columns}, {0, 0, y[3], y[4]}};
    axis.merge();
    const scalar_t* const src = grad_y(band, panel * panel_);
    AxisCursor cursor(axis, begin);
    while (count > 0) {
      const int64_t run = cursor.run(count);
      const scalar_t* const from = src + cursor.offset();
      if (axis.stride[3] == 1 && y[1] != 1) {
        copy_transposed(from, y[1], filters, run, dst, panel_);
      } else {
        for (int64_t i = 0; i < run; ++i) copy_run(dst + i * panel_, from + i * axis.stride[3], y[1], filters);
      }
      dst += run * panel_;
      cursor.advance(run);
      count -= run;
    }
  }

  void multiply_block(const Share& share, int64_t panel, const Step* steps, int64_t count, const acc_t* staged,
                      const int32_t* place, const acc_t* b) const {
    const int64_t vecs = std::min(vecs_, ceil_div(g_.filters - panel * panel_, kLane));
    const int64_t places = share.last_place - share.first_place;
    const int64_t tiles = ceil_div(places, max_step_rows(vecs)), height = places / tiles;
    int64_t taller = places - tiles * height;
    for (int64_t d = share.first_place; d < share.last_place; --taller) {
      const int64_t rows = height + (taller > 0 ? 1 : 0);
      acc_t* const c = sums(share.half, panel) + d * panel_;
      select_step_kernel<acc_t>(rows, vecs)(steps, count, staged, place + d, b, c, panel_, c, panel_);
      d += rows;
    }
  }

  void store() const {
    Axis axis = places();
    axis.merge();
    const int64_t* const w = params_.grad_w_strides;
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t filters = std::min(panel_, g_.filters - panel * panel_);
      acc_t* const src = sums(0, panel);
      if (halves_ == 2) {
        const acc_t* const second = sums(1, panel);
        for (int64_t i = 0; i < depth_ * panel_; ++i) src[i] += second[i];
      }
      AxisCursor cursor(axis, 0);
      for (int64_t d = 0; d < depth_;) {
        const int64_t run = cursor.run(depth_ - d);
        store_places(src + d * panel_, run, axis.stride[3], filters,
                     static_cast<scalar_t*>(params_.grad_w) + panel * panel_ * w[0] + cursor.offset());
        cursor.advance(run);
        d += run;
      }
    }
  }

  void store_places(const acc_t* src, int64_t count, int64_t stride, int64_t filters, scalar_t* dst) const {
    const int64_t filter_stride = params_.grad_w_strides[0];
    if constexpr (std::is_same_v<scalar_t, acc_t>) {
      if (stride == 1) return copy_transposed(src, panel_, count, filters, dst, filter_stride);
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < filters; ++k) {
        dst[i * stride + k * filter_stride] = static_cast<scalar_t>(src[i * panel_ + k]);
      }
    }
  }

  const ConvGradWeightParams& params_;
  const PlaneGeometry g_;
  const int64_t depth_;
  const Images<scalar_t> images_;
  StagedBands bands_;
  StagedLayout layout_{};
  bool in_place_ = false;
  int64_t halves_ = 1, vecs_ = 0, panel_ = 0, panels_ = 0;  // panels of filters
  int64_t filter_shares_ = 1, place_shares_ = 1, tasks_per_thread_ = 1;
};

}  // namespace fastnn::FASTNN_BACKEND
