// Local response normalisation; formulas in ops/local_response_norm.h and local_response_norm_math.h.
//
// A block owns a tile: `channels` channels of `positions` positions (of all images, one behind the other).
// Forward, a thread adds up the window of one value after the other and divides. Backward first does so for the
// channels before and after the tile too, whose windows reach into it, and leaves what they give in shared
// memory; then each value adds up the terms of the channels in whose windows it is. Threads run along what is
// dense in memory: positions with channels first, channels with channels last.
//
// Bound by memory, elements a value, read + written: forward 1 + 1, backward 2 + 1, double backward 3 + 2.
// Windows of a tile meet in L1: at 5 channels some 7 loads a value, which L1 serves in a third of the time that
// memory takes. Beyond about 16 channels they are the bound, as then is the share of a tile that is added up
// for its neighbours. Terms that shared memory does not hold, of windows of thousands of channels, stand in the
// workspace.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "../ops/local_response_norm.h"
#include "../ops/local_response_norm_math.h"
#include "dispatch.cuh"
#include "divisor.cuh"
#include "reduce.cuh"

namespace fastnn::cuda {
namespace {

enum class Direction { kForward, kBackward, kDoubleBackward };

constexpr int kThreads = 256;
// 32 channels, so that the 4 more of a window of 5 are an eighth of the work; 64 positions, a sector of any
// type.
constexpr int64_t kTileChannels = 32, kTilePositions = 64;
constexpr int64_t kSharedBytes = 48 * 1024;

// Arrays of terms: the element's own, and those that are added up.
constexpr int terms_of(Direction direction) {
  return direction == Direction::kForward ? 0 : direction == Direction::kBackward ? 2 : 3;
}

FASTNN_HOST_DEVICE float square_root(float v) { return sqrtf(v); }
FASTNN_HOST_DEVICE double square_root(double v) { return sqrt(v); }
FASTNN_HOST_DEVICE float power(float v, float exponent) { return powf(v, exponent); }
FASTNN_HOST_DEVICE double power(double v, double exponent) { return pow(v, exponent); }

template <typename T>
struct Math {
  using Number = T;
  static FASTNN_HOST_DEVICE T number(T value) { return value; }
  static FASTNN_HOST_DEVICE T sqrt(T x) { return square_root(x); }
  static FASTNN_HOST_DEVICE T pow(T x, T exponent) { return power(x, exponent); }
  static FASTNN_HOST_DEVICE T product_sum(T a, T b, T c) { return a * b + c; }
};

struct Tiles {
  int64_t C, S, positions;  // positions: N * S
  int64_t before, after;
  int64_t tile_channels, tile_positions;
  int64_t chunks;                  // tiles side by side along the channels
  int64_t extent;                  // channels of a tile with those around it, at most
  bool channels_first, in_shared;  // in_shared: whether the terms are

  Tiles(const LocalResponseNormShape& shape, int terms, int64_t number_bytes)
      : C(shape.C),
        S(shape.S),
        positions(shape.N * shape.S),
        before(shape.before()),
        after(shape.after()),
        tile_positions(kTilePositions),
        channels_first(shape.layout == Layout::kChannelsFirst) {
    const int64_t around = before + after;
    tile_channels = std::min(C, std::max(kTileChannels, around));
    if (!channels_first) {
      // A warp along the channels: more of them, and fewer positions.
      tile_channels = std::min(C, std::max(2 * kTileChannels, around));
      tile_positions = kTilePositions / 2;
    }
    chunks = ceil_div(C, tile_channels);
    extent = std::min(C, tile_channels + around);
    while (tile_positions > 1 && term_bytes(terms, number_bytes) > kSharedBytes) tile_positions /= 2;
    in_shared = term_bytes(terms, number_bytes) <= kSharedBytes;
  }
  int64_t term_bytes(int terms, int64_t number_bytes) const {
    return terms * extent * tile_positions * number_bytes;
  }
  int64_t blocks() const { return chunks * ceil_div(positions, tile_positions); }
};

template <typename scalar_t, Direction kDirection>
struct Arguments {
  using acc_t = acc_type<scalar_t>;
  const scalar_t *x, *g, *v;
  scalar_t *out, *grad;  // y or d_grad_y; grad_x or d_x
  acc_t* workspace;
  lrn::Constants<acc_t> constants;
  Tiles tiles;
  Divisor by_plane, by_extent, by_channels;
};

template <typename scalar_t, Direction kDirection>
__global__ void __launch_bounds__(kThreads, 1) local_response_norm_kernel(Arguments<scalar_t, kDirection> p) {
  using acc_t = acc_type<scalar_t>;
  using M = Math<acc_t>;
  constexpr int kTerms = terms_of(kDirection);
  FASTNN_DYNAMIC_SHARED(acc_t, shared);
  const Tiles& t = p.tiles;
  const int64_t c_begin = blockIdx.x % t.chunks * t.tile_channels,
                p_begin = blockIdx.x / t.chunks * t.tile_positions;
  const int64_t c_end = c_begin + t.tile_channels < t.C ? c_begin + t.tile_channels : t.C;
  const bool across = kDirection != Direction::kForward && p.grad != nullptr;
  // Channels whose terms the tile needs.
  const int64_t e_begin = across && c_begin > t.after ? c_begin - t.after : across ? 0 : c_begin;
  const int64_t e_end = across ? (c_end + t.before < t.C ? c_end + t.before : t.C) : c_end;
  const int64_t step = t.channels_first ? t.S : 1;
  const int64_t array = t.extent * t.tile_positions;
  acc_t* const terms = t.in_shared ? shared : p.workspace + blockIdx.x * array * kTerms;

  // Place of a value in memory and in the tile; false beyond the last position.
  struct Place {
    int64_t c, at, term;
  };
  const auto place = [&](int64_t i, int64_t first, int64_t channels, const Divisor& by, Place& to) {
    int64_t position = i, channel;
    if (t.channels_first) {
      channel = i / t.tile_positions;
      position = i - channel * t.tile_positions;
    } else {
      // Channels of the last tile are fewer than the divisor's.
      channel = channels == t.extent || channels == t.tile_channels ? by.digit(position) : position % channels;
      if (channels != t.extent && channels != t.tile_channels) position /= channels;
    }
    to.c = first + channel;
    to.term = t.channels_first ? (to.c - e_begin) * t.tile_positions + position
                               : position * t.extent + to.c - e_begin;
    position += p_begin;
    if (position >= t.positions) return false;
    if (t.channels_first) {
      const int64_t image = p.by_plane.divide(position);
      to.at = (image * t.C + to.c) * t.S + position - image * t.S;
    } else {
      to.at = position * t.C + to.c;
    }
    return true;
  };

  for (int64_t i = threadIdx.x; i < (e_end - e_begin) * t.tile_positions; i += kThreads) {
    Place to;
    if (!place(i, e_begin, e_end - e_begin, across ? p.by_extent : p.by_channels, to)) continue;
    const int64_t first = to.c > t.before ? to.c - t.before : 0;
    const int64_t last = to.c + t.after < t.C ? to.c + t.after : t.C - 1;
    const int64_t from = to.at + (first - to.c) * step;
    acc_t squares = 0, products = 0;
#pragma unroll 4
    for (int64_t j = 0; j <= last - first; ++j) {
      const acc_t value = to_acc(p.x[from + j * step]);
      squares += value * value;
      if constexpr (kDirection == Direction::kDoubleBackward) products += value * to_acc(p.v[from + j * step]);
    }
    const acc_t x = to_acc(p.x[to.at]);
    if constexpr (kDirection == Direction::kForward) {
      p.out[to.at] = from_acc<scalar_t>(x / lrn::divisor<M>(p.constants, lrn::base<M>(p.constants, squares)));
    } else if constexpr (kDirection == Direction::kBackward) {
      const auto result = lrn::backward_terms<M>(p.constants, x, to_acc(p.g[to.at]), squares);
      terms[to.term] = result.own;
      terms[array + to.term] = result.across;
    } else {
      const acc_t g = p.g == nullptr ? acc_t(0) : to_acc(p.g[to.at]);
      const auto result =
          lrn::double_backward_terms<M>(p.constants, x, g, to_acc(p.v[to.at]), squares, products);
      if (p.out != nullptr && to.c >= c_begin && to.c < c_end)
        p.out[to.at] = from_acc<scalar_t>(result.d_grad_y);
      if (across) {
        terms[to.term] = result.own;
        terms[array + to.term] = result.of_x;
        terms[2 * array + to.term] = result.of_v;
      }
    }
  }
  if constexpr (kDirection != Direction::kForward) {
    if (!across) return;
    __syncthreads();
    const int64_t term_step = t.channels_first ? t.tile_positions : 1;
    for (int64_t i = threadIdx.x; i < (c_end - c_begin) * t.tile_positions; i += kThreads) {
      Place to;
      if (!place(i, c_begin, c_end - c_begin, p.by_channels, to)) continue;
      const int64_t first = to.c > t.after ? to.c - t.after : 0;
      const int64_t last = to.c + t.before < t.C ? to.c + t.before : t.C - 1;
      const acc_t* const from = terms + array + to.term + (first - to.c) * term_step;
      acc_t one = 0, other = 0;
#pragma unroll 4
      for (int64_t j = 0; j <= last - first; ++j) {
        one += from[j * term_step];
        if constexpr (kDirection == Direction::kDoubleBackward) other += from[array + j * term_step];
      }
      const acc_t x = to_acc(p.x[to.at]), own = terms[to.term];
      acc_t result;
      if constexpr (kDirection == Direction::kBackward) {
        result = lrn::backward_result<M>(p.constants, x, lrn::BackwardTerms<acc_t>{own, one});
      } else {
        result = lrn::double_backward_result<M>(p.constants, x, to_acc(p.v[to.at]),
                                                lrn::DoubleBackwardTerms<acc_t>{acc_t(0), own, one, other});
      }
      p.grad[to.at] = from_acc<scalar_t>(result);
    }
  }
}

template <Direction kDirection, typename Params>
Status dispatch(const char* name, const Params& p, const void* g, const void* v, void* out, void* grad,
                Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    using acc_t = acc_type<scalar_t>;
    const Tiles tiles(p.shape, terms_of(kDirection), sizeof(acc_t));
    if (tiles.blocks() > std::numeric_limits<int32_t>::max()) return Status::error("too many elements", name);
    const auto in = [](const void* values) { return static_cast<const scalar_t*>(values); };
    const Arguments<scalar_t, kDirection> arguments{
        in(p.x),
        in(g),
        in(v),
        static_cast<scalar_t*>(out),
        static_cast<scalar_t*>(grad),
        static_cast<acc_t*>(p.workspace),
        lrn::Constants<acc_t>(p.shape),
        tiles,
        Divisor(tiles.S, tiles.positions),
        Divisor(tiles.extent, tiles.extent * tiles.tile_positions),
        Divisor(tiles.tile_channels, tiles.tile_channels * tiles.tile_positions)};
    const size_t bytes = tiles.in_shared && grad != nullptr
                             ? static_cast<size_t>(tiles.term_bytes(terms_of(kDirection), sizeof(acc_t)))
                             : 0;
    return launch(name, local_response_norm_kernel<scalar_t, kDirection>,
                  dim3(static_cast<unsigned>(tiles.blocks())), dim3(kThreads), bytes, stream, arguments);
  });
}

int64_t workspace_bytes(DType dtype, const LocalResponseNormShape& shape, Direction direction) {
  const int64_t number_bytes = dtype == DType::kFloat64 ? 8 : 4;
  const Tiles tiles(shape, terms_of(direction), number_bytes);
  return tiles.in_shared ? 0 : tiles.blocks() * tiles.term_bytes(terms_of(direction), number_bytes);
}

}  // namespace

int64_t local_response_norm_forward_workspace(const LocalResponseNormForwardParams&) { return 0; }
int64_t local_response_norm_backward_workspace(const LocalResponseNormBackwardParams& p) {
  return workspace_bytes(p.dtype, p.shape, Direction::kBackward);
}
int64_t local_response_norm_double_backward_workspace(const LocalResponseNormDoubleBackwardParams& p) {
  return p.d_x == nullptr ? 0 : workspace_bytes(p.dtype, p.shape, Direction::kDoubleBackward);
}

Status local_response_norm_forward(const LocalResponseNormForwardParams& p, Stream stream) {
  return dispatch<Direction::kForward>("local_response_norm_forward", p, nullptr, nullptr, p.y, nullptr,
                                       stream);
}
Status local_response_norm_backward(const LocalResponseNormBackwardParams& p, Stream stream) {
  return dispatch<Direction::kBackward>("local_response_norm_backward", p, p.grad_y, nullptr, nullptr, p.grad_x,
                                        stream);
}
Status local_response_norm_double_backward(const LocalResponseNormDoubleBackwardParams& p, Stream stream) {
  return dispatch<Direction::kDoubleBackward>("local_response_norm_double_backward", p, p.grad_y, p.gg_x,
                                              p.d_grad_y, p.d_x, stream);
}

}  // namespace fastnn::cuda
