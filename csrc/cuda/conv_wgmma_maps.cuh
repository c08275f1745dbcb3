// The tensor maps of conv_wgmma.cuh: of A and, for each residue class, of B. Host code.
#pragma once

#include <cstdint>
#include <type_traits>

#include "conv_gemm_problem.cuh"
#include "conv_wgmma_plan.cuh"
#include "conv_wgmma_tiles.cuh"
#include "tensor_map.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

struct WgmmaMaps {
  TensorMap a, b[kMaxWgmmaClasses];
};

template <typename scalar_t>
constexpr TensorType kWgmmaTensorType = sizeof(scalar_t) == 4                  ? TensorType::kTFloat32
                                        : std::is_same_v<scalar_t, bfloat16_t> ? TensorType::kBFloat16
                                                                               : TensorType::kFloat16;

// [n][d][h][w][channel]; strides of n, d, h, w in elements.
template <typename scalar_t>
GlobalTensor activations(const void* data, bool has_depth, int64_t channels, int64_t batch,
                         const int64_t (&spatial)[kSpatialDims], int64_t batch_stride,
                         const int64_t (&strides)[kSpatialDims]) {
  GlobalTensor t{};
  t.type = kWgmmaTensorType<scalar_t>;
  t.data = const_cast<void*>(data);
  const auto add = [&t](int64_t size, int64_t stride) {
    t.sizes[t.rank] = static_cast<uint64_t>(size);
    t.strides[t.rank] = size == 1 ? kVecBytes : static_cast<uint64_t>(stride) * sizeof(scalar_t);
    ++t.rank;
  };
  add(channels, 1);
  add(spatial[2], strides[2]);
  add(spatial[1], strides[1]);
  if (has_depth) add(spatial[0], strides[0]);
  add(batch, batch_stride);
  return t;
}

// Of rows as long as a box has bytes.
inline TensorSwizzle swizzle_of(const WgmmaProblem& p) {
  return p.box_bytes() == 128  ? TensorSwizzle::k128B
         : p.box_bytes() == 64 ? TensorSwizzle::k64B
                               : TensorSwizzle::k32B;
}

// Walks positions as the class does.
inline Im2colBox positions_box(const WgmmaProblem& p, const WgmmaClass& c, const int64_t (&limit)[kSpatialDims],
                               uint32_t channels, uint32_t pixels) {
  Im2colBox box{};
  box.channels = channels;
  box.pixels = pixels;
  box.swizzle = swizzle_of(p);
  for (int i = 0; i < (p.has_depth ? 3 : 2); ++i) {
    const int d = kSpatialDims - 1 - i;
    box.lower[i] = c.first[d];
    box.upper[i] = c.first[d] + (c.spatial[d] - 1) * p.col_step[d] - static_cast<int>(limit[d] - 1);
    box.element_strides[1 + i] = static_cast<uint32_t>(p.col_step[d]);
  }
  return box;
}

// B's tensor as the problem has it: strides between neighbours.
template <typename scalar_t>
Status encode_b(WgmmaMaps& maps, const WgmmaConv& c, const void* b, int64_t channels, int64_t batch,
                int64_t batch_stride, uint32_t pixels) {
  const ConvGemm& p = c.gemm;
  const GlobalTensor tensor =
      activations<scalar_t>(b, c.problem.has_depth, channels, batch, p.limit, batch_stride, p.b_spatial);
  Status status;
  for (int i = 0; i < c.problem.class_count && status.ok(); ++i) {
    const WgmmaClass& k = c.problem.classes[i];
    if (k.steps == 0) continue;
    status = encode_im2col(
        maps.b[i], tensor,
        positions_box(c.problem, k, p.limit, kWgmmaStepDepth<scalar_t> >> c.problem.box_shift, pixels));
  }
  return status;
}

// Boxes are what one load fetches: of the operand that a pair of blocks shares, half (conv_wgmma_load.cuh).
template <typename scalar_t, typename Tile, bool kAAlongK>
Status encode_filters(WgmmaMaps& maps, const WgmmaConv& c, const void* filters) {
  const ConvGemm& p = c.gemm;
  const uint32_t depth = kWgmmaStepDepth<scalar_t> >> c.problem.box_shift;
  const uint32_t parts = c.problem.shares_b ? 1 : kWgmmaCluster;
  const int64_t distance = c.packs ? c.pack.pitch : tap_distance(c.pack);
  const int64_t row_stride = c.packs ? c.pack.row_pitch() : c.pack.row_stride;
  GlobalTensor tensor{.type = kWgmmaTensorType<scalar_t>, .rank = 3, .data = const_cast<void*>(filters)};
  tensor.sizes[1] = static_cast<uint64_t>(c.pack.tap_count());
  tensor.strides[1] = static_cast<uint64_t>(distance) * sizeof(scalar_t);
  TiledBox box{.sizes = {0, 1, 0}};
  if constexpr (kAAlongK) {  // [row of all groups][tap][lead]
    tensor.sizes[0] = static_cast<uint64_t>(p.depth.lead);
    tensor.sizes[2] = static_cast<uint64_t>(p.groups * p.rows);
    tensor.strides[2] = static_cast<uint64_t>(row_stride) * sizeof(scalar_t);
    box.sizes[0] = depth;
    box.sizes[2] = Tile::kM / parts;
    box.swizzle = swizzle_of(c.problem);
  } else {  // [lead of all groups][tap][row]
    tensor.sizes[0] = static_cast<uint64_t>(p.rows);
    tensor.sizes[2] = static_cast<uint64_t>(p.groups * p.depth.lead);
    tensor.strides[2] = static_cast<uint64_t>(c.pack.lead_stride) * sizeof(scalar_t);
    box.sizes[0] = kPanelElements;
    box.sizes[2] = depth / parts;
    box.swizzle = TensorSwizzle::k128B;
  }
  return encode_tiled(maps.a, tensor, box);
}

template <typename scalar_t, typename Tile, WgmmaReduction kReduction>
Status encode_maps(WgmmaMaps& maps, const WgmmaConv& c, const void* a, const void* b) {
  const ConvGemm& p = c.gemm;
  const bool shares_b = c.problem.shares_b;
  if constexpr (kReduction == WgmmaReduction::kPositions) {
    const GlobalTensor tensor =
        activations<scalar_t>(a, c.problem.has_depth, p.groups * p.rows, p.depth.lead, p.depth.spatial,
                              p.a_depth[0], {p.a_depth[1], p.a_depth[2], p.a_depth[3]});
    Im2colBox box{};  // without corners it walks all positions
    box.channels = kPanelElements;
    box.pixels = kPanelElements / (shares_b ? 1 : kWgmmaCluster);
    box.swizzle = TensorSwizzle::k128B;
    const Status status = encode_im2col(maps.a, tensor, box);
    if (!status.ok()) return status;
    return encode_b<scalar_t>(maps, c, b, p.groups * p.cols.lead, p.depth.lead, p.b_depth_lead,
                              kPanelElements / (shares_b ? kWgmmaCluster : 1));
  } else {
    const Status status = encode_filters<scalar_t, Tile, kIsAAlongK<kReduction>>(maps, c, a);
    if (!status.ok()) return status;
    return encode_b<scalar_t>(maps, c, b, p.groups * p.depth.lead, p.cols.lead, p.b_col_lead,
                              Tile::kN / (shares_b ? kWgmmaCluster : 1));
  }
}

}  // namespace
}  // namespace fastnn::cuda
