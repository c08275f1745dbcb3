// Max pooling; the formula and the rules for NaN and ties stand in ops/max_pool.h.
//
// All of it is bound by memory: forward reads each input once from memory (windows that overlap meet in a cache
// or in shared memory) and writes an output and its offset of one byte; backward reads a gradient and an offset
// a window and writes each input once. For float32, window 3 and stride 2 that is 21 bytes an output either
// way, where offsets in int64 would make it 28. Three variants, each of which says what its threads own:
//
//   max_pool_planes.cuh    tiles in shared memory: channels first, and channels last of any number
//   max_pool_channels.cuh  walks in registers: channels last in whole vectors, the common windows
//   max_pool_general.cuh   a thread an output, or an input: the rest; and the gather
//
// choose_variant() says which, from the shape alone. All give the same bits.
#include <limits>

#include "../ops/max_pool.h"
#include "dispatch.cuh"
#include "max_pool_channels.cuh"
#include "max_pool_general.cuh"
#include "max_pool_planes.cuh"

namespace fastnn::cuda {
namespace {

// The windows that are walked in registers: those of ResNet, Inception, VGG and their like. Calls
// f(FixedWindow) or f(AnyWindow) with the window of the rows and columns.
template <typename F>
Status with_window(const PoolGeometry& g, F&& f) {
  const bool square = g.kernel[1] == g.kernel[2] && g.stride[1] == g.stride[2];
  if (square && g.dilation[1] == 1 && g.dilation[2] == 1) {
    if (g.kernel[2] == 2 && g.stride[2] == 2) return f(FixedWindow<2, 2>{});
    if (g.kernel[2] == 3 && g.stride[2] == 2) return f(FixedWindow<3, 2>{});
    if (g.kernel[2] == 3 && g.stride[2] == 1) return f(FixedWindow<3, 1>{});
  }
  return f(AnyWindow{});
}

enum class Variant { kPlanes, kChannels, kGeneral };

// kPlanes needs a plan of tiles, which the largest windows do not have; they are kGeneral's.
Variant choose_variant(const PoolGeometry& g, Direction direction, OffsetType offsets, bool fixed_window,
                       int vec) {
  // A depth is as good as more images where windows do not reach through it.
  if (g.kernel[0] != 1 || g.stride[0] != 1 || g.pad[0] != 0) return Variant::kGeneral;
  // Tiles and strips count in int.
  constexpr int64_t kNarrow = int64_t{1} << 29;
  for (int d = 1; d < kSpatialDims; ++d) {
    if (g.in[d] + g.pad[d] > kNarrow || g.stride[d] > kNarrow || g.dilation[d] * g.kernel[d] > kNarrow)
      return Variant::kGeneral;
  }
  if (g.layout == Layout::kChannelsLast && g.C % vec == 0)
    return fixed_window ? Variant::kChannels : Variant::kGeneral;
  // A tile would load the rows between the windows too, the general kernel leaves them out.
  if (direction == Direction::kForward && g.stride[1] > g.dilation[1] * (g.kernel[1] - 1) + 1)
    return Variant::kGeneral;
  return offsets == OffsetType::kInt32 || g.C > kNarrow ? Variant::kGeneral : Variant::kPlanes;
}

int bytes_of(OffsetType type) { return type == OffsetType::kUInt8 ? 1 : type == OffsetType::kUInt16 ? 2 : 4; }

bool has_grid(int64_t blocks) { return blocks > 0 && blocks <= std::numeric_limits<int32_t>::max(); }

// Calls f(std::integral_constant<int, kVec>{}) with the channels that a thread of the general kernel takes.
template <typename scalar_t, typename F>
Status dispatch_vec(const PoolGeometry& g, F&& f) {
  constexpr int kWide = kVecSize<scalar_t>;
  if (g.layout == Layout::kChannelsLast && g.C % kWide == 0) return f(std::integral_constant<int, kWide>{});
  return f(std::integral_constant<int, 1>{});
}

template <typename scalar_t, typename Window>
Status forward(const MaxPoolForwardParams& p, Window, Stream stream) {
  constexpr bool kFixed = !std::is_same_v<Window, AnyWindow>;
  constexpr int kSize = static_cast<int>(sizeof(scalar_t));
  const PoolGeometry& g = p.geometry;
  const Variant variant = choose_variant(g, Direction::kForward, p.offset_type, kFixed, kVecSize<scalar_t>);
  if constexpr (kFixed) {
    if (variant == Variant::kChannels) return launch_channels_forward<scalar_t, Window>(p, stream);
  }
  if (variant == Variant::kPlanes) {
    const TileElementBytes bytes{
        kSize,
        0,
        kFixed || g.kernel[1] == 1 ? 0 : kSize,
        kFixed || g.kernel[1] == 1 ? 0 : static_cast<int>(sizeof(uint16_t)),
        kSize,
        kFixed && p.offsets == nullptr && p.indices == nullptr ? 0 : bytes_of(p.offset_type)};
    const PlaneTiles<Direction::kForward> plan(g, bytes);
    if (has_grid(plan.blocks)) return launch_planes_forward<scalar_t, Window>(p, plan, stream);
  }
  return dispatch_vec<scalar_t>(g, [&](auto vec) { return launch_general_forward<scalar_t, vec>(p, stream); });
}

template <typename scalar_t, typename Window>
Status backward(const MaxPoolBackwardParams& p, Window, Stream stream) {
  constexpr bool kFixed = !std::is_same_v<Window, AnyWindow>;
  constexpr int kSize = static_cast<int>(sizeof(scalar_t));
  const PoolGeometry& g = p.geometry;
  const Variant variant = choose_variant(g, Direction::kBackward, p.offset_type, kFixed, kVecSize<scalar_t>);
  if constexpr (kFixed) {
    if (variant == Variant::kChannels) return launch_channels_backward<scalar_t, Window>(p, stream);
  }
  if (variant == Variant::kPlanes) {
    const PlaneTiles<Direction::kBackward> plan(g, {kSize, bytes_of(p.offset_type), 0, 0, kSize, 0});
    if (has_grid(plan.blocks)) return launch_planes_backward<scalar_t, Window>(p, plan, stream);
  }
  return dispatch_vec<scalar_t>(g, [&](auto vec) { return launch_general_backward<scalar_t, vec>(p, stream); });
}

// Whether there is nothing to pool: no image.
bool is_empty(const PoolGeometry& g) { return g.N == 0; }

}  // namespace

Status max_pool_forward(const MaxPoolForwardParams& p, Stream stream) {
  if (is_empty(p.geometry)) return Status::success();
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return with_window(p.geometry, [&](auto window) { return forward<scalar_t>(p, window, stream); });
  });
}

Status max_pool_backward(const MaxPoolBackwardParams& p, Stream stream) {
  if (is_empty(p.geometry)) return Status::success();
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return with_window(p.geometry, [&](auto window) { return backward<scalar_t>(p, window, stream); });
  });
}

Status max_pool_gather(const MaxPoolGatherParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    return dispatch_vec<scalar_t>(p.geometry,
                                  [&](auto vec) { return launch_general_gather<scalar_t, vec>(p, stream); });
  });
}

}  // namespace fastnn::cuda
