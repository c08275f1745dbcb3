// Max pooling with the channels innermost, by square windows of fixed size: a thread owns a vector of 16 bytes
// of channels and walks down a strip of windows, or backward of cells, in registers (max_pool_walk.cuh).
// Consecutive threads have consecutive vectors of channels, then positions of a row: every access is a vector,
// and a warp's are next to each other. What the windows of a row share comes from L1, what strips share from
// L2.
//
// What bounds it: bytes, as in max_pool_planes.cuh, where the budget of instructions is stated. A strip's index
// is taken apart once, for up to kStripRows rows.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "../ops/max_pool.h"
#include "dispatch.cuh"
#include "divisor.cuh"
#include "max_pool_walk.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kChannelThreads = 128;
// Longer strips read less twice, at most kSize - 1 rows of each; shorter ones are more, and no fewer are made
// than the largest device holds threads.
constexpr int64_t kStripRows = 16;
constexpr int64_t kWantedStrips = int64_t{132} * 2048;

// Strips of `rows` rows of [images, height, width, vectors].
struct ChannelStrips {
  int64_t count;
  int height, rows;
  Divisor by_vectors, by_width, by_groups;

  ChannelStrips(int64_t images, int64_t height_, int64_t width, int64_t vectors)
      : ChannelStrips(images, height_, width, vectors, rows_of_strip(images * width * vectors, height_)) {}

  struct Strip {
    int64_t image;
    int column, begin, end, vector;
  };

  __device__ __forceinline__ Strip strip(int64_t index) const {
    Strip s;
    s.vector = static_cast<int>(by_vectors.digit(index));
    s.column = static_cast<int>(by_width.digit(index));
    s.begin = static_cast<int>(by_groups.digit(index)) * rows;
    s.end = s.begin + rows < height ? s.begin + rows : height;
    s.image = index;
    return s;
  }

  dim3 grid() const { return dim3(static_cast<unsigned>(ceil_div(count, kChannelThreads))); }

 private:
  ChannelStrips(int64_t images, int64_t height_, int64_t width, int64_t vectors, int64_t of_strip)
      : count(images * width * vectors * ceil_div(height_, of_strip)),
        height(static_cast<int>(height_)),
        rows(static_cast<int>(of_strip)),
        by_vectors(vectors, count),
        by_width(width, count),
        by_groups(ceil_div(height_, of_strip), count) {}

  static int64_t rows_of_strip(int64_t columns, int64_t height) {
    int64_t most = columns * height / kWantedStrips;
    most = most < 1 ? 1 : most > kStripRows ? kStripRows : most;
    return ceil_div(height, ceil_div(height, most));
  }
};

// One array [images, height, width, C].
struct ChannelField {
  int height, width;
  int64_t row, image;  // elements from one to the next
  int channels;

  ChannelField(const PoolGeometry& g, const int64_t (&size)[kSpatialDims])
      : height(static_cast<int>(size[1])),
        width(static_cast<int>(size[2])),
        row(size[2] * g.C),
        image(size[1] * row),
        channels(static_cast<int>(g.C)) {}
};

// The values of a vector, in the type that is computed in. Of a word the compiler would make two halves first.
template <typename scalar_t, int kVec>
__device__ __forceinline__ void unpack(const Vec<scalar_t, kVec>& raw, acc_type<scalar_t> (&out)[kVec]) {
  if constexpr (std::is_same_v<scalar_t, bfloat16_t>) {
    const auto words = std::bit_cast<Vec<uint32_t, kVec / 2>>(raw);
#pragma unroll
    for (int k = 0; k < kVec; k += 2) {
      out[k] = __uint_as_float(words.v[k / 2] << 16);
      out[k + 1] = __uint_as_float(words.v[k / 2] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kVec; ++k) out[k] = to_acc(raw.v[k]);
  }
}

// Places of kVec windows, a byte each. They stay in words, of which a byte is one instruction away.
template <int kVec>
struct Places {
  using word_t = std::conditional_t<kVec == 2, uint16_t, uint32_t>;
  static constexpr int kInWord = static_cast<int>(sizeof(word_t)), kWords = kVec / kInWord;
  Vec<word_t, kWords> words;

  Places() = default;
  __device__ __forceinline__ Places(const uint8_t* p, bool aligned) {
    if (aligned) {
      words = load_vec<kWords>(reinterpret_cast<const word_t*>(p), true);
    } else {
      words = std::bit_cast<Vec<word_t, kWords>>(load_vec<kVec>(p, false));
    }
  }
  __device__ __forceinline__ void set_to_none() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words.v[i] = static_cast<word_t>(~word_t{0});
    static_assert(kNoPlace == 0xff);
  }
  __device__ __forceinline__ void unpack(int (&out)[kVec]) const {
#pragma unroll
    for (int k = 0; k < kVec; ++k)
      out[k] = static_cast<int>(__byte_perm(words.v[k / kInWord], 0, 0x4440 + k % kInWord));
  }
};

// What backward knows of kVec windows.
template <typename scalar_t>
struct ChannelWindow {
  static constexpr int kVec = kVecSize<scalar_t>;
  Vec<scalar_t, kVec> gradient;
  Places<kVec> place;

  __device__ __forceinline__ void get(int (&places)[kVec], acc_type<scalar_t> (&gradients)[kVec]) const {
    place.unpack(places);
    unpack(gradient, gradients);
  }
};

// A strip of y. kAligned: whether all vectors can be moved whole, which is asked once, and not around each
// load.
template <typename Window, bool kAligned, typename scalar_t>
__device__ __forceinline__ void forward_strip(const ChannelStrips::Strip& s, const scalar_t* x, scalar_t* y,
                                              uint8_t* offsets, int64_t* indices, const ChannelField& in,
                                              const ChannelField& out, int row_pad, int column_pad) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kVec = kVecSize<scalar_t>, kSize = Window::kSize, kStride = Window::kStride;
  const int start = s.column * kStride - column_pad, origin = s.begin * kStride - row_pad;
  const Taps<kSize> taps(start, in.width);
  const scalar_t* tap[kSize];
#pragma unroll
  for (int t = 0; t < kSize; ++t) {
    tap[t] =
        x + s.image * in.image + static_cast<int64_t>(start + taps.offset[t]) * in.channels + s.vector * kVec;
  }
  const int64_t first =
      s.image * out.image + s.begin * out.row + static_cast<int64_t>(s.column) * out.channels + s.vector * kVec;
  walk_forward<Window, acc_t, kVec>(
      s.end - s.begin, [&](int row) { return clamped(row, -origin, in.height - 1 - origin); },
      [&](int row) {
        const int64_t line = (origin + row) * in.row;
        acc_t values[kSize][kVec];
#pragma unroll
        for (int t = 0; t < kSize; ++t) {
          unpack(load_vec<kVec>(tap[t] + line, kAligned), values[t]);
        }
        return best_of_row(values, taps);
      },
      [&](int o, const Best<acc_t, kVec>& best) {
        const int64_t at = first + o * out.row;
        Vec<scalar_t, kVec> value;
        Vec<uint8_t, kVec> place;
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
          value.v[k] = from_acc<scalar_t>(best.value[k]);
          place.v[k] = static_cast<uint8_t>(best.place[k]);
        }
        store_vec(y + at, value, kAligned);
        if (offsets != nullptr) store_vec(offsets + at, place, kAligned);
        if (indices != nullptr) {
#pragma unroll
          for (int k = 0; k < kVec; ++k) {
            const int r = best.place[k] / kSize;
            indices[at + k] =
                static_cast<int64_t>(origin + o * kStride + r) * in.width + start + best.place[k] - r * kSize;
          }
        }
      });
}

template <typename scalar_t, typename Window>
__global__ void __launch_bounds__(kChannelThreads, 1)
    max_pool_channels_forward_kernel(const scalar_t* x, scalar_t* y, uint8_t* offsets, int64_t* indices,
                                     ChannelStrips strips, ChannelField in, ChannelField out, int row_pad,
                                     int column_pad, bool aligned) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kChannelThreads + threadIdx.x;
  if (index >= strips.count) return;
  const ChannelStrips::Strip s = strips.strip(index);
  if (aligned) {
    forward_strip<Window, true>(s, x, y, offsets, indices, in, out, row_pad, column_pad);
  } else {
    forward_strip<Window, false>(s, x, y, offsets, indices, in, out, row_pad, column_pad);
  }
}

// A strip of cells of x.
template <typename Window, bool kAligned, typename scalar_t>
__device__ __forceinline__ void backward_strip(const ChannelStrips::Strip& s, const scalar_t* grad_y,
                                               const uint8_t* offsets, scalar_t* grad_x, const ChannelField& in,
                                               const ChannelField& out, int row_pad, int column_pad) {
  using acc_t = acc_type<scalar_t>;
  constexpr int kVec = kVecSize<scalar_t>, kSize = Window::kSize, kStride = Window::kStride;
  // Where the column of windows is that begins with the cells; a window outside stands for the nearest inside.
  const int nearest = s.column < out.width ? s.column : out.width - 1;
  const int64_t source = s.image * out.image + static_cast<int64_t>(nearest) * out.channels + s.vector * kVec;
  const int position = s.column * kStride - column_pad;
  scalar_t* const column =
      grad_x + s.image * in.image + static_cast<int64_t>(position) * in.channels + s.vector * kVec;
  walk_backward<Window, 1, acc_t, kVec>(
      s.begin, s.end, out.height,
      [&](int row, int ahead) {
        const bool there = static_cast<unsigned>(s.column - ahead) < static_cast<unsigned>(out.width);
        const int64_t at = source + row * out.row -
                           (there ? (ahead + nearest - s.column) * static_cast<int64_t>(out.channels) : 0);
        ChannelWindow<scalar_t> window{load_vec<kVec>(grad_y + at, kAligned),
                                       Places<kVec>(offsets + at, kAligned)};
        if (!there) window.place.set_to_none();
        return window;
      },
      [&](int cell, const acc_t(&sum)[kSize][kStride][kVec]) {
#pragma unroll
        for (int r = 0; r < kStride; ++r) {
          const int row = cell * kStride + r - row_pad;
          if (static_cast<unsigned>(row) >= static_cast<unsigned>(in.height)) continue;
#pragma unroll
          for (int c = 0; c < kStride; ++c) {
            if (static_cast<unsigned>(position + c) >= static_cast<unsigned>(in.width)) continue;
            Vec<scalar_t, kVec> value;
#pragma unroll
            for (int k = 0; k < kVec; ++k) value.v[k] = from_acc<scalar_t>(sum[r][c][k]);
            store_vec(column + row * in.row + c * in.channels, value, kAligned);
          }
        }
      });
}

template <typename scalar_t, typename Window>
__global__ void __launch_bounds__(kChannelThreads, 1)
    max_pool_channels_backward_kernel(const scalar_t* grad_y, const uint8_t* offsets, scalar_t* grad_x,
                                      ChannelStrips strips, ChannelField in, ChannelField out, int row_pad,
                                      int column_pad, bool aligned) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kChannelThreads + threadIdx.x;
  if (index >= strips.count) return;
  const ChannelStrips::Strip s = strips.strip(index);
  if (aligned) {
    backward_strip<Window, true>(s, grad_y, offsets, grad_x, in, out, row_pad, column_pad);
  } else {
    backward_strip<Window, false>(s, grad_y, offsets, grad_x, in, out, row_pad, column_pad);
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

inline int64_t images_of(const PoolGeometry& g) { return g.N * g.in[0]; }

template <typename scalar_t, typename Window>
Status launch_channels_forward(const MaxPoolForwardParams& p, Stream stream) {
  constexpr int kVec = kVecSize<scalar_t>;
  const PoolGeometry& g = p.geometry;
  const ChannelStrips strips(images_of(g), g.out[1], g.out[2], g.C / kVec);
  const bool aligned = all_aligned<scalar_t, kVec>({p.x, p.y}) && all_aligned<uint8_t, kVec>({p.offsets});
  return launch("max_pool_channels_forward", max_pool_channels_forward_kernel<scalar_t, Window>, strips.grid(),
                dim3(kChannelThreads), 0, stream, static_cast<const scalar_t*>(p.x),
                static_cast<scalar_t*>(p.y), static_cast<uint8_t*>(p.offsets), p.indices, strips,
                ChannelField(g, g.in), ChannelField(g, g.out), static_cast<int>(g.pad[1]),
                static_cast<int>(g.pad[2]), aligned);
}

template <typename scalar_t, typename Window>
Status launch_channels_backward(const MaxPoolBackwardParams& p, Stream stream) {
  constexpr int kVec = kVecSize<scalar_t>;
  const PoolGeometry& g = p.geometry;
  const auto cells = [&](int d) { return (g.in[d] - 1 + g.pad[d]) / Window::kStride + 1; };
  const ChannelStrips strips(images_of(g), cells(1), cells(2), g.C / kVec);
  const bool aligned =
      all_aligned<scalar_t, kVec>({p.grad_y, p.grad_x}) && all_aligned<uint8_t, kVec>({p.offsets});
  return launch("max_pool_channels_backward", max_pool_channels_backward_kernel<scalar_t, Window>,
                strips.grid(), dim3(kChannelThreads), 0, stream, static_cast<const scalar_t*>(p.grad_y),
                static_cast<const uint8_t*>(p.offsets), static_cast<scalar_t*>(p.grad_x), strips,
                ChannelField(g, g.in), ChannelField(g, g.out), static_cast<int>(g.pad[1]),
                static_cast<int>(g.pad[2]), aligned);
}

}  // namespace
}  // namespace fastnn::cuda
