// Locally connected layers on the CPU: forward, data gradient, weight gradient.
//
//   y[n, k, o] = bias[k, o] + sum over j of patch[n, o, j] * w[o, k, j],   j = (c, r), J of them
//
// At each position a matrix of filters [K, J] meets the patches of all images [N, J]:
//
//   forward      [N x J] [J x K]    vectors along j, whose lanes are added at the end
//   grad_input   [N x K] [K x J]    vectors along j; what a patch gets is added to its places in grad_x
//   grad_weight  [K x N] [N x J]    vectors along j
//
// forward and grad_weight: a thread takes positions, one after the other, gathers the patches of all images and
// then reads, or writes, the position's filters once, in the order of memory. grad_input: windows overlap, so a
// thread takes channels (and images, where there are too few channels) and walks over all positions in order;
// it reads the filters of its channels, and nobody else does while channels suffice.
//
// Bound by the filters' bytes, K J |o| of them, up to some N = 10 images (8 FLOPs a byte); then by
// multiply-adds, N K J |o|. Gathering a patch costs J copies, as much as one or two of its K products.
//
// Error: forward, a lane of J / lanes products, then the lanes in order, then the bias; grad_input, a chain of
// K products for each of at most R positions, which are added in order; grad_weight, a chain of N products.
// Bits do not depend on the number of threads.
#include "../ops/locally_connected.h"

#include <algorithm>
#include <cstdint>

#include "conv_operands.h"
#include "conv_plan.h"
#include "dispatch.h"
#include "parallel.h"
#include "vec_convert.h"

namespace fastnn::FASTNN_BACKEND {
namespace {

// Filters (or images) by images in registers at a time, one vector of sums each; and in the gradients filters
// or images by vectors.
constexpr int kTile = 4;
constexpr int kTileVecs = 2;

// Filters' elements, once for each few images, that are worth waking a thread for.
constexpr int64_t kMinWorkPerThread = 1 << 17;

// One position's window: where it begins, and which taps of it lie inside x.
struct Window {
  int64_t begin[kSpatialDims], first[kSpatialDims], last[kSpatialDims];

  Window(const ConvGeometry& g, int64_t position) {
    for (int d = kSpatialDims - 1; d >= 0; --d) {
      begin[d] = position % g.out[d] * g.stride[d] - g.pad[d];
      position /= g.out[d];
      const int64_t step = g.dilation[d];
      first[d] = std::min(g.kernel[d], begin[d] < 0 ? ceil_div(-begin[d], step) : 0);
      last[d] = std::max(first[d], std::min(g.kernel[d], ceil_div(g.in[d] - begin[d], step)));
    }
  }

  bool whole(const ConvGeometry& g) const {
    for (int d = 0; d < kSpatialDims; ++d) {
      if (first[d] > 0 || last[d] < g.kernel[d]) return false;
    }
    return true;
  }

  // Calls f(number of its first tap, taps, offset of its first tap) for each row of taps that is inside; the
  // offset is in the spatial strides given.
  template <typename F>
  void for_each_row(const ConvGeometry& g, const int64_t* strides, const F& f) const {
    for (int64_t d = first[0]; d < last[0]; ++d) {
      for (int64_t h = first[1]; h < last[1]; ++h) {
        const int64_t offset = (begin[0] + d * g.dilation[0]) * strides[0] +
                               (begin[1] + h * g.dilation[1]) * strides[1] +
                               (begin[2] + first[2] * g.dilation[2]) * strides[2];
        f((d * g.kernel[1] + h) * g.kernel[2] + first[2], last[2] - first[2], offset);
      }
    }
  }
};

// Patches of a position as rows of whole vectors, zeros behind the J elements and outside of x.
template <typename scalar_t>
class Patches {
 public:
  using acc_t = acc_type<scalar_t>;

  static int64_t pitch(const ConvGeometry& g) { return round_up(g.C * volume(g.kernel), kLanes<acc_t>); }
  static int64_t bytes(const ConvGeometry& g) {
    return round_up(g.N * pitch(g) * static_cast<int64_t>(sizeof(acc_t)), 64);
  }

  Patches(const ConvGeometry& g, const void* x, const ConvStrides& strides, acc_t* buffer)
      : g_(g), x_(static_cast<const scalar_t*>(x)), strides_(strides), buffer_(buffer) {
    std::fill_n(buffer, g.N * pitch(g), acc_t(0));
  }

  void gather(int64_t position) {
    const Window window(g_, position);
    const int64_t taps = volume(g_.kernel), pitch = Patches::pitch(g_);
    const int64_t step = g_.dilation[2] * strides_[4];
    const bool whole = window.whole(g_);
    for (int64_t n = 0; n < g_.N; ++n) {
      acc_t* row = buffer_ + n * pitch;
      if (!whole) std::fill_n(row, g_.C * taps, acc_t(0));
      const scalar_t* plane = x_ + n * strides_[0];
      for (int64_t c = 0; c < g_.C; ++c, row += taps, plane += strides_[1]) {
        window.for_each_row(g_, strides_ + 2, [&](int64_t tap, int64_t count, int64_t offset) {
          for (int64_t i = 0; i < count; ++i) row[tap + i] = static_cast<acc_t>(plane[offset + i * step]);
        });
      }
    }
  }

  const acc_t* row(int64_t n) const { return buffer_ + n * pitch(g_); }

 private:
  const ConvGeometry& g_;
  const scalar_t* const x_;
  const ConvStrides& strides_;
  acc_t* const buffer_;
};

// Threads that take positions.
int64_t position_workers(const ConvGeometry& g) {
  const int64_t work = volume(g.out) * g.K * g.C * volume(g.kernel) * std::max<int64_t>(1, g.N / kTile);
  return std::clamp<int64_t>(std::min<int64_t>(at::get_num_threads(), work / kMinWorkPerThread), 1,
                             volume(g.out));
}

template <typename scalar_t>
int64_t patches_bytes(const ConvGeometry& g) {
  return Patches<scalar_t>::bytes(g) * position_workers(g);
}

// Runs f(position, patches) for all positions, patches gathered.
template <typename scalar_t, typename F>
void for_each_position(const ConvGeometry& g, const void* x, const ConvStrides& strides, void* workspace,
                       const F& f) {
  using acc_t = acc_type<scalar_t>;
  const int64_t workers = position_workers(g);
  parallel_for(workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      char* const buffer = static_cast<char*>(workspace) + worker * Patches<scalar_t>::bytes(g);
      Patches<scalar_t> patches(g, x, strides, reinterpret_cast<acc_t*>(buffer));
      const int64_t end = volume(g.out) * (worker + 1) / workers;
      for (int64_t position = volume(g.out) * worker / workers; position < end; ++position) {
        patches.gather(position);
        f(position, patches);
      }
    }
  });
}

// Where an activation's element of a position is, in its strides.
int64_t position_offset(const ConvGeometry& g, int64_t position, const ConvStrides& strides) {
  return position / (g.out[1] * g.out[2]) * strides[2] + position / g.out[2] % g.out[1] * strides[3] +
         position % g.out[2] * strides[4];
}

// ---- forward ----

// Dot products of kFilters rows of filters and kImages patches.
template <int kFilters, int kImages, typename scalar_t>
inline __attribute__((always_inline)) void dot_tile(const scalar_t* w, int64_t length,
                                                    const acc_type<scalar_t>* patches, int64_t pitch,
                                                    acc_type<scalar_t> (&sums)[kTile][kTile]) {
  using acc_t = acc_type<scalar_t>;
  Vec<acc_t> sum[kFilters][kImages];
  for (auto& row : sum) {
    for (auto& each : row) each = Vec<acc_t>(acc_t(0));
  }
  for_each_vector<acc_t>(0, length, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
    Vec<acc_t> patch[kImages];
    for (int n = 0; n < kImages; ++n) patch[n] = Vec<acc_t>::loadu(patches + n * pitch + j);
    for (int k = 0; k < kFilters; ++k) {
      const Vec<acc_t> filter = load_acc(w + k * length + j, count);
      for (int n = 0; n < kImages; ++n) sum[k][n] = at::vec::fmadd(filter, patch[n], sum[k][n]);
    }
  });
  for (int k = 0; k < kFilters; ++k) {
    for (int n = 0; n < kImages; ++n) sums[k][n] = sum_lanes(sum[k][n]);
  }
}

template <typename scalar_t>
void forward(const LocallyConnectedForwardParams& p) {
  using acc_t = acc_type<scalar_t>;
  const ConvGeometry& g = p.geometry;
  const int64_t length = g.C * volume(g.kernel), pitch = Patches<scalar_t>::pitch(g), positions = volume(g.out);
  const auto* const bias = static_cast<const scalar_t*>(p.bias);
  for_each_position<scalar_t>(g, p.x, p.x_strides, p.workspace, [&](int64_t position, const auto& patches) {
    const scalar_t* const w = static_cast<const scalar_t*>(p.w) + position * g.K * length;
    scalar_t* const y = static_cast<scalar_t*>(p.y) + position_offset(g, position, p.y_strides);
    const auto tile = [&](auto filters, int64_t k) {
      constexpr int kFilters = decltype(filters)::value;
      acc_t sums[kTile][kTile];
      const auto store = [&](int64_t n, int images) {
        for (int i = 0; i < kFilters; ++i) {
          const acc_t shift =
              bias == nullptr ? acc_t(0) : static_cast<acc_t>(bias[(k + i) * positions + position]);
          for (int m = 0; m < images; ++m) {
            y[(n + m) * p.y_strides[0] + (k + i) * p.y_strides[1]] = static_cast<scalar_t>(sums[i][m] + shift);
          }
        }
      };
      int64_t n = 0;
      for (; n + kTile <= g.N; n += kTile) {
        dot_tile<kFilters, kTile>(w + k * length, length, patches.row(n), pitch, sums);
        store(n, kTile);
      }
      for (; n < g.N; ++n) {
        dot_tile<kFilters, 1>(w + k * length, length, patches.row(n), pitch, sums);
        store(n, 1);
      }
    };
    int64_t k = 0;
    for (; k + kTile <= g.K; k += kTile) tile(std::integral_constant<int, kTile>{}, k);
    for (; k < g.K; ++k) tile(std::integral_constant<int, 1>{}, k);
  });
}

// ---- gradients: sums over rows of one matrix, times numbers of another ----

// out[i][j] = sum over m of factors[m * factor_row + i * factor_column] * rows[m * pitch + j], for kResults i
// and kVecs vectors of j. `store(i, j, vector)` takes the results; `load(pointer)` a vector of a row.
template <int kResults, int kVecs, typename acc_t, typename Load, typename Factor, typename Store>
inline __attribute__((always_inline)) void outer_tile(int64_t terms, const Load& load, const Factor& factor,
                                                      const Store& store) {
  Vec<acc_t> sum[kResults][kVecs];
  for (auto& row : sum) {
    for (auto& each : row) each = Vec<acc_t>(acc_t(0));
  }
  for (int64_t m = 0; m < terms; ++m) {
    Vec<acc_t> row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = load(m, v);
    for (int i = 0; i < kResults; ++i) {
      const Vec<acc_t> by(factor(m, i));
      for (int v = 0; v < kVecs; ++v) sum[i][v] = at::vec::fmadd(by, row[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kResults; ++i) {
    for (int v = 0; v < kVecs; ++v) store(i, v, sum[i][v]);
  }
}

// Calls f(first, integral_constant count) for [0, size) in pieces of kTile, then of 1.
template <typename F>
inline __attribute__((always_inline)) void for_each_tile(int64_t size, const F& f) {
  int64_t i = 0;
  for (; i + kTile <= size; i += kTile) f(i, std::integral_constant<int, kTile>{});
  for (; i < size; ++i) f(i, std::integral_constant<int, 1>{});
}

template <typename scalar_t>
void grad_weight(const LocallyConnectedGradWeightParams& p) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const ConvGeometry& g = p.geometry;
  const int64_t length = g.C * volume(g.kernel), pitch = Patches<scalar_t>::pitch(g);
  for_each_position<scalar_t>(g, p.x, p.x_strides, p.workspace, [&](int64_t position, const auto& patches) {
    scalar_t* const grad_w = static_cast<scalar_t*>(p.grad_w) + position * g.K * length;
    const scalar_t* const grad_y =
        static_cast<const scalar_t*>(p.grad_y) + position_offset(g, position, p.grad_y_strides);
    for_each_tile(g.K, [&](int64_t k, auto filters) {
      constexpr int kFilters = decltype(filters)::value;
      const auto factor = [&](int64_t n, int i) {
        return static_cast<acc_t>(grad_y[n * p.grad_y_strides[0] + (k + i) * p.grad_y_strides[1]]);
      };
      const auto columns = [&](int64_t j, auto vecs) {
        outer_tile<kFilters, decltype(vecs)::value, acc_t>(
            g.N, [&](int64_t n, int v) { return Vec<acc_t>::loadu(patches.row(0) + n * pitch + j + v * W); },
            factor,
            [&](int i, int v, const Vec<acc_t>& sum) {
              store_acc(grad_w + (k + i) * length + j + v * W, sum, length - j - v * W);
            });
      };
      int64_t j = 0;
      for (; j + kTileVecs * W <= length; j += kTileVecs * W)
        columns(j, std::integral_constant<int, kTileVecs>{});
      for (; j < length; j += W) columns(j, std::integral_constant<int, 1>{});
    });
  });
}

// What a thread of grad_input owns: channels of images, with sums in acc_t, and what a position adds to them.
struct GradInputBlocks {
  int64_t channels, images, channel_blocks, image_blocks;
  int64_t plane, patch;  // elements of a channel of grad_x, and of a block's part of a patch, whole vectors

  template <typename acc_t>
  static GradInputBlocks of(const ConvGeometry& g) {
    const int64_t threads = at::get_num_threads(), taps = volume(g.kernel);
    GradInputBlocks b;
    // As few blocks as keep the threads busy, and no narrower than two vectors.
    const int64_t narrowest = std::min(g.C, ceil_div(kTileVecs * kLanes<acc_t>, taps));
    b.channels = std::max(narrowest, ceil_div(g.C, threads));
    b.channel_blocks = ceil_div(g.C, b.channels);
    b.images = ceil_div(g.N, std::max<int64_t>(1, std::min(g.N, threads / b.channel_blocks)));
    b.image_blocks = ceil_div(g.N, b.images);
    b.plane = volume(g.in);
    b.patch = round_up(b.channels * taps, kLanes<acc_t>);
    return b;
  }
  int64_t count() const { return channel_blocks * image_blocks; }
  template <typename acc_t>
  int64_t bytes() const {
    return round_up((images * channels * plane + images * patch) * static_cast<int64_t>(sizeof(acc_t)), 64);
  }
};

template <typename scalar_t>
void grad_input_block(const LocallyConnectedGradInputParams& p, const GradInputBlocks& blocks, int64_t block) {
  using acc_t = acc_type<scalar_t>;
  constexpr int64_t W = kLanes<acc_t>;
  const ConvGeometry& g = p.geometry;
  const int64_t taps = volume(g.kernel), length = g.C * taps;
  const int64_t c0 = block % blocks.channel_blocks * blocks.channels, c1 = std::min(g.C, c0 + blocks.channels);
  const int64_t n0 = block / blocks.channel_blocks * blocks.images, n1 = std::min(g.N, n0 + blocks.images);
  const int64_t columns = (c1 - c0) * taps;
  auto* const sums =
      reinterpret_cast<acc_t*>(static_cast<char*>(p.workspace) + block * blocks.template bytes<acc_t>());
  acc_t* const parts = sums + blocks.images * blocks.channels * blocks.plane;
  std::fill_n(sums, (n1 - n0) * blocks.channels * blocks.plane, acc_t(0));
  const int64_t spatial[] = {g.in[1] * g.in[2], g.in[2], 1};

  for (int64_t position = 0; position < volume(g.out); ++position) {
    const scalar_t* const w = static_cast<const scalar_t*>(p.w) + position * g.K * length + c0 * taps;
    const scalar_t* const grad_y = static_cast<const scalar_t*>(p.grad_y) + n0 * p.grad_y_strides[0] +
                                   position_offset(g, position, p.grad_y_strides);
    const auto multiply = [&](int64_t j, auto vecs) {
      for_each_tile(n1 - n0, [&](int64_t n, auto images) {
        constexpr int kImages = decltype(images)::value, kVecs = decltype(vecs)::value;
        outer_tile<kImages, kVecs, acc_t>(
            g.K,
            [&](int64_t k, int v) {
              const int64_t rest = columns - j - v * W;
              return kVecs > 1 ? load_acc(w + k * length + j + v * W) : load_acc(w + k * length + j, rest);
            },
            [&](int64_t k, int i) {
              return static_cast<acc_t>(grad_y[(n + i) * p.grad_y_strides[0] + k * p.grad_y_strides[1]]);
            },
            [&](int i, int v, const Vec<acc_t>& sum) {
              sum.store(parts + (n + i) * blocks.patch + j + v * W);
            });
      });
    };
    int64_t j = 0;
    for (; j + kTileVecs * W <= columns; j += kTileVecs * W)
      multiply(j, std::integral_constant<int, kTileVecs>{});
    for (; j < columns; j += W) multiply(j, std::integral_constant<int, 1>{});

    const Window window(g, position);
    for (int64_t n = 0; n < n1 - n0; ++n) {
      for (int64_t c = 0; c < c1 - c0; ++c) {
        const acc_t* const part = parts + n * blocks.patch + c * taps;
        acc_t* const plane = sums + (n * blocks.channels + c) * blocks.plane;
        window.for_each_row(g, spatial, [&](int64_t tap, int64_t count, int64_t offset) {
          for (int64_t i = 0; i < count; ++i) plane[offset + i * g.dilation[2]] += part[tap + i];
        });
      }
    }
  }

  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t c = c0; c < c1; ++c) {
      const acc_t* from = sums + ((n - n0) * blocks.channels + c - c0) * blocks.plane;
      for (int64_t d = 0; d < g.in[0]; ++d) {
        for (int64_t h = 0; h < g.in[1]; ++h, from += g.in[2]) {
          scalar_t* const to = static_cast<scalar_t*>(p.grad_x) + n * p.grad_x_strides[0] +
                               c * p.grad_x_strides[1] + d * p.grad_x_strides[2] + h * p.grad_x_strides[3];
          for (int64_t v = 0; v < g.in[2]; ++v) to[v * p.grad_x_strides[4]] = static_cast<scalar_t>(from[v]);
        }
      }
    }
  }
}

template <typename F>
int64_t bytes_of(DType dtype, const F& f) {
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) {
    bytes = f(tag);
    return Status::success();
  });
  return bytes;
}

}  // namespace

Status locally_connected_forward(const LocallyConnectedForwardParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    forward<typename decltype(tag)::type>(p);
    return Status::success();
  });
}

int64_t locally_connected_forward_workspace(const LocallyConnectedForwardParams& p) {
  return bytes_of(p.dtype, [&](auto tag) { return patches_bytes<typename decltype(tag)::type>(p.geometry); });
}

Status locally_connected_grad_input(const LocallyConnectedGradInputParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const auto blocks = GradInputBlocks::of<acc_type<scalar_t>>(p.geometry);
    parallel_for(blocks.count(), 1, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) grad_input_block<scalar_t>(p, blocks, block);
    });
    return Status::success();
  });
}

int64_t locally_connected_grad_input_workspace(const LocallyConnectedGradInputParams& p) {
  return bytes_of(p.dtype, [&](auto tag) {
    using acc_t = acc_type<typename decltype(tag)::type>;
    const auto blocks = GradInputBlocks::of<acc_t>(p.geometry);
    return blocks.count() * blocks.template bytes<acc_t>();
  });
}

Status locally_connected_grad_weight(const LocallyConnectedGradWeightParams& p, Stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    grad_weight<typename decltype(tag)::type>(p);
    return Status::success();
  });
}

int64_t locally_connected_grad_weight_workspace(const LocallyConnectedGradWeightParams& p) {
  return bytes_of(p.dtype, [&](auto tag) { return patches_bytes<typename decltype(tag)::type>(p.geometry); });
}

}  // namespace fastnn::FASTNN_BACKEND
