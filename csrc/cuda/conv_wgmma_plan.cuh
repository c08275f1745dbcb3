// Which convolutions go to Hopper's tensor cores (conv_wgmma.cuh), with which tile and split, and what the
// kernel is told of them. Host code.
//
// The sum that a sample's outputs are made of is cut in chunks by the shape of the filters alone, so tile and
// split of forward and of the data gradient change no bit: they may follow the device. Those of the weight
// gradient decide the order of its sums and follow from the shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "conv_filter_pack.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_index.cuh"
#include "conv_mma_plan.cuh"
#include "conv_wgmma_tiles.cuh"
#include "tensor_map.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

struct WgmmaConv {
  ConvGemm gemm;
  WgmmaProblem problem;
  WgmmaTiles tiles;
  FilterPack pack;
  bool packs;
};

// Below this most of a step is zeros, and mma.sync with its shorter steps does as well.
constexpr int64_t kMinWgmmaLeads = 16;

// ---- whether --------------------------------------------------------------------------------------------

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kVecBytes == 0; }

// Whether a tensor's channels lie side by side and every other step is whole chunks of 16 bytes, so that a
// tensor map may describe it. Strides of extents of 1 are never used and may be anything.
template <typename scalar_t>
bool is_mapped(int64_t channels_stride, std::initializer_list<std::pair<int64_t, int64_t>> sizes_and_strides) {
  constexpr int64_t kMost = (int64_t{1} << 40) / static_cast<int64_t>(sizeof(scalar_t));
  return channels_stride == 1 &&
         std::all_of(sizes_and_strides.begin(), sizes_and_strides.end(), [](const auto& dimension) {
           const auto [size, stride] = dimension;
           return size == 1 || (stride > 0 && stride < kMost && stride % kVecSize<scalar_t> == 0);
         });
}

template <typename scalar_t>
bool is_mapped(const ConvStrides& strides, int64_t batch, const int64_t (&spatial)[kSpatialDims]) {
  return is_mapped<scalar_t>(
      strides[1],
      {{batch, strides[0]}, {spatial[0], strides[2]}, {spatial[1], strides[3]}, {spatial[2], strides[4]}});
}

// What an im2col map holds of corners and offsets: 8 bits a dimension in tensors of rank 4, 5 in those of
// rank 5.
inline bool fits_im2col(const WgmmaProblem& p, const WgmmaClass& c, const int64_t (&limit)[kSpatialDims]) {
  const int64_t range = p.has_depth ? 16 : 128;
  for (int d = 0; d < kSpatialDims; ++d) {
    const int64_t lower = c.first[d];
    const int64_t upper = lower + int64_t{c.spatial[d] - 1} * p.col_step[d] - (limit[d] - 1);
    const int64_t last_offset = c.offset[d] + int64_t{c.taps[d] - 1} * p.offset_step[d];
    if (lower < -range || lower >= range || upper < -range || upper >= range) return false;
    if (std::max<int64_t>(c.offset[d], last_offset) >= 2 * range) return false;
    if (p.col_step[d] < 1 || p.col_step[d] > 8) return false;
  }
  return true;
}

// Sizes of the product that are counted in 32 bits.
inline bool fits_wgmma(const ConvGemm& p) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  const int64_t taps = p.depth.spatial[0] * p.depth.spatial[1] * p.depth.spatial[2];
  return p.cols.size() > 0 && p.depth.size() > 0 && p.cols.size() <= kMost && p.depth.size() <= kMost &&
         taps * p.depth.lead <= kMost && p.groups * p.rows <= kMost && mma_takes(p);
}

// ---- tile and split -------------------------------------------------------------------------------------

// Cycles of a multiprocessor, roughly: what is compared is whole tiles against parts of them. `tiles` count
// splits.
template <typename Tile>
double wgmma_cycles(int64_t tiles, int64_t steps, int64_t splits, int64_t multiprocessors) {
  const double of_tile = static_cast<double>(steps) * Tile::kStepCycles;
  // Out leaves at some 64 bytes a cycle, partial sums, twice as many bytes, at the 32 of the way to L2. The
  // first loads of a tile hide behind the one before it, but its last products do not.
  const double finish = 500 + Tile::kM * Tile::kN / (splits > 1 ? 8.0 : 32.0);
  const double rounds = static_cast<double>(ceil_div(tiles, multiprocessors));
  // A launch, and each partial sum read once more by all multiprocessors.
  const double sum =
      splits > 1 ? 4000 + static_cast<double>(tiles) * Tile::kM * Tile::kN / 8 / multiprocessors : 0;
  return rounds * (of_tile + finish) + sum;
}

struct WgmmaChoice {
  WgmmaTiles tiles;
  int64_t splits, split_steps;
  double cycles = std::numeric_limits<double>::infinity();

  // tiles: of out, over all classes and groups.
  template <typename Tile>
  void consider(WgmmaTiles kind, int64_t count, int64_t steps, int64_t steps_each, int64_t multiprocessors) {
    const int64_t parts = ceil_div(steps, steps_each);
    const double cost = wgmma_cycles<Tile>(count * parts, steps_each, parts, multiprocessors);
    if (cost < cycles) *this = {kind, parts, steps_each, cost};
  }
};

// steps: of the deepest class.
inline WgmmaChoice choose_taps(const ConvGemm& p, const WgmmaProblem& problem, int64_t steps) {
  WgmmaChoice choice{};
  const int64_t sms = std::max(multiprocessors(), 1);
  const auto consider = [&]<typename Tile>(TypeTag<Tile>, WgmmaTiles kind, int64_t steps_each) {
    int64_t cols = 0;
    for (int i = 0; i < problem.class_count; ++i) cols += ceil_div(problem.classes[i].cols, Tile::kN);
    choice.consider<Tile>(kind, cols * ceil_div(p.rows, Tile::kM) * p.groups, steps, steps_each, sms);
  };
  // Either one block has all chunks or each has one: the bits do not depend on which. Classes are many tiles
  // already, and their depths differ.
  const int64_t chunk = std::min<int64_t>(steps, kWgmmaChunkSteps);
  for (const int64_t steps_each : {steps, problem.class_count == 1 ? chunk : steps}) {
    if (p.rows <= FewRowsWgmmaTile::kM) {
      consider(TypeTag<FewRowsWgmmaTile>{}, WgmmaTiles::kFewRows, steps_each);
      continue;
    }
    if (steps_each <= kWgmmaChunkSteps) consider(TypeTag<WideWgmmaTile>{}, WgmmaTiles::kWide, steps_each);
    consider(TypeTag<TallWgmmaTile>{}, WgmmaTiles::kTall, steps_each);
    consider(TypeTag<SquareWgmmaTile>{}, WgmmaTiles::kSquare, steps_each);
  }
  return choice;
}

inline WgmmaChoice choose_positions(const ConvGemm& p, int64_t cols, int64_t steps) {
  WgmmaChoice choice{};
  const auto consider = [&]<typename Tile>(TypeTag<Tile>, WgmmaTiles kind) {
    const int64_t tiles = ceil_div(cols, Tile::kN) * ceil_div(p.rows, Tile::kM) * p.groups;
    const int64_t most = std::min(steps, std::max<int64_t>(4 * kFullGrid / tiles, 1));
    for (int64_t parts = 1; parts <= most; ++parts) {
      choice.consider<Tile>(kind, tiles, steps, ceil_div(steps, parts), kFullGrid);
    }
  };
  if (p.rows <= FewRowsWgmmaTile::kM) {
    consider(TypeTag<FewRowsWgmmaTile>{}, WgmmaTiles::kFewRows);
  } else {
    consider(TypeTag<TallWgmmaTile>{}, WgmmaTiles::kTall);
    consider(TypeTag<SquareWgmmaTile>{}, WgmmaTiles::kSquare);
  }
  return choice;
}

// Calls f(TypeTag<Tile>{}). The weight gradient has no wide tile: its sums are long.
template <WgmmaReduction kReduction, typename F>
auto dispatch_wgmma_tile(WgmmaTiles tiles, F&& f) {
  switch (tiles) {
    case WgmmaTiles::kWide:
      if constexpr (kReduction == WgmmaReduction::kTaps) return f(TypeTag<WideWgmmaTile>{});
      break;
    case WgmmaTiles::kTall:
      return f(TypeTag<TallWgmmaTile>{});
    case WgmmaTiles::kSquare:
      return f(TypeTag<SquareWgmmaTile>{});
    case WgmmaTiles::kFewRows:
      break;
  }
  return f(TypeTag<FewRowsWgmmaTile>{});
}

// Enters the choice; `cols_of` gives a class's columns, padded as the tile wants them.
template <WgmmaReduction kReduction, typename ColsOf>
bool enter_choice(WgmmaConv& c, const WgmmaChoice& choice, ColsOf&& cols_of) {
  WgmmaProblem& p = c.problem;
  c.tiles = choice.tiles;
  p.splits = static_cast<uint32_t>(choice.splits);
  p.split_steps = static_cast<int32_t>(choice.split_steps);
  p.out_is_partial |= choice.splits > 1;
  int64_t total = 0;
  dispatch_wgmma_tile<kReduction>(choice.tiles, [&]<typename Tile>(TypeTag<Tile>) {
    p.tiles_m = static_cast<uint32_t>(ceil_div(p.rows, Tile::kM));
    for (int i = 0; i < p.class_count; ++i) {
      WgmmaClass& k = p.classes[i];
      k.tiles_n = static_cast<uint32_t>(ceil_div(cols_of(k), Tile::kN));
      const int64_t tiles = int64_t{p.tiles_m} * k.tiles_n * p.splits * p.groups;
      k.tiles = static_cast<uint32_t>(tiles);
      total += tiles;
    }
  });
  p.tiles = static_cast<uint32_t>(total);
  return total <= std::numeric_limits<int32_t>::max();
}

// ---- forward and data gradient --------------------------------------------------------------------------

// Filters whose taps follow each other at one distance, of which this is it; 0 where they do not.
inline int64_t tap_distance(const FilterPack& f) {
  int64_t distance = 0, expected = 0;
  for (int d = kSpatialDims - 1; d >= 0; --d) {
    if (f.taps[d] == 1) continue;
    if (distance == 0) {
      distance = expected = f.tap_strides[d];
    } else if (f.tap_strides[d] != expected) {
      return 0;
    }
    expected *= f.taps[d];
  }
  return distance == 0 ? f.leads : distance;  // of a single tap: anything
}

// The residue class, or all there is.
inline WgmmaClass class_of(const ConvGemm& p, const FilterPack& filters, int64_t steps_of_tap,
                           const int64_t (&residue)[kSpatialDims]) {
  WgmmaClass c{};
  int64_t cols = p.cols.lead, taps = 1, filter_tap = 0;
  for (int d = 0; d < kSpatialDims; ++d) {
    int64_t spatial = p.cols.spatial[d], count = p.depth.spatial[d], origin = p.origin[d], first_tap = 0;
    if (p.taps[d].stride > 1) {
      const TapsOfPosition met = taps_of_position(p.taps[d], residue[d]);
      spatial = (p.positions[d] - 1 - residue[d]) / p.taps[d].stride + 1;
      count = met.count;
      origin = met.origin;
      first_tap = met.first;
      c.out_shift += residue[d] * (p.out_col[1 + d] / p.taps[d].stride);
    }
    // Offsets of a load are never negative: where taps go back, the first of them has the largest.
    const int64_t back = p.depth_step[d] < 0 ? -p.depth_step[d] * std::max<int64_t>(count - 1, 0) : 0;
    c.spatial[d] = static_cast<int32_t>(spatial);
    c.taps[d] = static_cast<int32_t>(std::max<int64_t>(count, 1));
    c.first[d] = static_cast<int32_t>(origin - back);
    c.offset[d] = static_cast<int32_t>(back);
    filter_tap = filter_tap * filters.taps[d] + first_tap;
    cols *= spatial;
    taps *= count;
  }
  c.filter_tap = static_cast<int32_t>(filter_tap);
  c.cols = static_cast<int32_t>(cols);
  c.steps = static_cast<int32_t>(taps * steps_of_tap);
  return c;
}

// False where mma.sync has to do. `w` has the strides that `filters` says; `b` those of p.
template <typename scalar_t>
bool plan_wgmma_taps(WgmmaConv& c, const ConvGemm& p, const FilterPack& filters, const void* w, const void* b,
                     const void* out) {
  constexpr int64_t kVec = kVecSize<scalar_t>;
  const int64_t leads = p.depth.lead, classes = p.classes[0] * p.classes[1] * p.classes[2];
  if (!fits_wgmma(p) || classes > kMaxWgmmaClasses || leads < kMinWgmmaLeads) return false;
  // Channels of the next group are beyond the last substep, or beyond the tensor.
  if (leads % (p.groups > 1 ? kWgmmaSubstepDepth<scalar_t> : kVec) != 0 || p.rows % kVec != 0) return false;
  if (!is_aligned(b) || !is_aligned(out)) return false;
  const auto& s = p.cols.spatial;
  if (!is_mapped<scalar_t>(p.b_depth_lead, {{p.cols.lead, p.b_col_lead},
                                            {p.limit[0], p.b_spatial[0]},
                                            {p.limit[1], p.b_spatial[1]},
                                            {p.limit[2], p.b_spatial[2]}})) {
    return false;
  }
  int64_t out_steps[kSpatialDims];  // between positions, not between those of a class
  for (int d = 0; d < kSpatialDims; ++d) out_steps[d] = p.out_col[1 + d] / p.taps[d].stride;
  const auto positions = [&](int d) { return p.taps[d].stride > 1 ? p.positions[d] : s[d]; };
  if (!is_mapped<scalar_t>(p.out_row, {{p.cols.lead, p.out_col[0]},
                                       {positions(0), out_steps[0]},
                                       {positions(1), out_steps[1]},
                                       {positions(2), out_steps[2]}})) {
    return false;
  }

  c = {};
  c.gemm = p;
  WgmmaProblem& q = c.problem;
  q.groups = static_cast<uint32_t>(p.groups);
  q.rows = static_cast<int32_t>(p.rows);
  q.leads = static_cast<int32_t>(leads);
  q.steps_of_tap = static_cast<int32_t>(ceil_div(leads, kWgmmaStepDepth<scalar_t>));
  const int64_t left = leads - int64_t{q.steps_of_tap - 1} * kWgmmaStepDepth<scalar_t>;
  q.last_substeps = static_cast<int32_t>(ceil_div(left, kWgmmaSubstepDepth<scalar_t>));
  q.has_depth = p.limit[0] != 1 || s[0] != 1 || p.classes[0] != 1 || filters.taps[0] != 1 || p.origin[0] != 0;
  q.out_group = p.out_group;
  std::copy_n(p.out_col, 4, q.out_col);
  int64_t taps_within = 1;
  for (int d = kSpatialDims - 1; d >= 0; --d) {
    q.col_step[d] = static_cast<int32_t>(p.col_step[d]);
    q.offset_step[d] = static_cast<int32_t>(p.depth_step[d]);
    const int64_t tap_step = p.taps[d].stride == 1 ? 1 : p.taps[d].tap_step;
    q.filter_tap_step[d] = static_cast<int32_t>(tap_step * taps_within);
    taps_within *= filters.taps[d];
  }
  for (int64_t d = 0; d < p.classes[0]; ++d) {
    for (int64_t h = 0; h < p.classes[1]; ++h) {
      for (int64_t w_residue = 0; w_residue < p.classes[2]; ++w_residue) {
        q.classes[q.class_count++] = class_of(p, filters, q.steps_of_tap, {d, h, w_residue});
      }
    }
  }
  const auto end = q.classes + q.class_count;
  std::stable_sort(q.classes, end, [](const auto& x, const auto& y) { return x.steps > y.steps; });
  if (!std::all_of(q.classes, end, [&](const WgmmaClass& k) { return fits_im2col(q, k, p.limit); }))
    return false;

  // In place: rows of any distance, of each the taps at one distance, of each the leads side by side.
  const int64_t distance = tap_distance(filters);
  c.pack = filters;
  c.pack.flat = false;
  c.packs = !(filters.lead_stride == 1 && distance > 0 && distance % kVec == 0 && filters.row_stride > 0 &&
              filters.row_stride % kVec == 0 && is_aligned(w) &&
              (p.groups == 1 || filters.group_stride == p.rows * filters.row_stride));
  c.pack.pitch = leads;
  return enter_choice<WgmmaReduction::kTaps>(c, choose_taps(p, q, q.classes[0].steps),
                                             [](const WgmmaClass& k) { return k.cols; });
}

template <typename scalar_t>
bool plan_wgmma(WgmmaConv& c, const ConvForwardParams& p) {
  return plan_wgmma_taps<scalar_t>(c, forward_problem(p), filters_of(p.geometry, p.w_strides, true), p.w, p.x,
                                   p.y);
}

template <typename scalar_t>
bool plan_wgmma(WgmmaConv& c, const ConvGradInputParams& p) {
  return plan_wgmma_taps<scalar_t>(c, grad_input_problem(p), filters_of(p.geometry, p.w_strides, false), p.w,
                                   p.grad_y, p.grad_x);
}

// ---- weight gradient ------------------------------------------------------------------------------------

// The columns are (tap, channel)s, filled up to 64 channels a tap.
template <typename scalar_t>
bool plan_wgmma(WgmmaConv& c, const ConvGradWeightParams& params) {
  const ConvGeometry& g = params.geometry;
  ConvGemm p = grad_weight_problem(params);
  p.cols.lead_fastest = true;
  const int64_t channels = p.cols.lead;
  if (sizeof(scalar_t) != 2 || !fits_wgmma(p) || channels < kMinWgmmaLeads) return false;
  if (channels % kVecSize<scalar_t> != 0 || p.rows % kVecSize<scalar_t> != 0) return false;
  if (!is_aligned(params.x) || !is_aligned(params.grad_y) ||
      !is_mapped<scalar_t>(params.x_strides, g.N, g.in) ||
      !is_mapped<scalar_t>(params.grad_y_strides, g.N, g.out)) {
    return false;
  }
  c = {};
  c.gemm = p;
  WgmmaProblem& q = c.problem;
  q.groups = static_cast<uint32_t>(p.groups);
  q.rows = static_cast<int32_t>(p.rows);
  q.leads = static_cast<int32_t>(channels);
  q.steps_of_tap = static_cast<int32_t>(ceil_div(channels, kWgmmaStepDepth<scalar_t>));
  q.last_substeps = kWgmmaSubsteps;
  q.has_depth = g.in[0] != 1 || g.out[0] != 1 || g.kernel[0] != 1 || g.pad[0] != 0;
  q.out_is_partial = true;
  q.class_count = 1;
  WgmmaClass& k = q.classes[0];
  int64_t taps = 1;
  for (int d = 0; d < kSpatialDims; ++d) {
    q.col_step[d] = static_cast<int32_t>(g.stride[d]);
    q.offset_step[d] = static_cast<int32_t>(g.dilation[d]);
    k.spatial[d] = static_cast<int32_t>(g.out[d]);
    k.first[d] = static_cast<int32_t>(-g.pad[d]);
    k.taps[d] = static_cast<int32_t>(g.kernel[d]);
    taps *= g.kernel[d];
  }
  k.cols = static_cast<int32_t>(p.cols.size());
  k.steps = static_cast<int32_t>(ceil_div(p.depth.size(), kWgmmaStepDepth<scalar_t>));
  if (!fits_im2col(q, k, p.limit)) return false;
  const int64_t padded = taps * q.steps_of_tap * kWgmmaStepDepth<scalar_t>;
  return enter_choice<WgmmaReduction::kPositions>(c, choose_positions(p, padded, k.steps),
                                                  [&](const WgmmaClass&) { return padded; });
}

// ---- tensor maps ----------------------------------------------------------------------------------------

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

// Walks positions as the class does.
inline Im2colBox positions_box(const WgmmaProblem& p, const WgmmaClass& c, const int64_t (&limit)[kSpatialDims],
                               uint32_t channels, uint32_t pixels) {
  Im2colBox box{};
  box.channels = channels;
  box.pixels = pixels;
  box.swizzle = TensorSwizzle::k128B;
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
    status = encode_im2col(maps.b[i], tensor,
                           positions_box(c.problem, k, p.limit, kWgmmaStepDepth<scalar_t>, pixels));
  }
  return status;
}

template <typename scalar_t, typename Tile>
Status encode_taps(WgmmaMaps& maps, const WgmmaConv& c, const void* filters, const void* b) {
  const ConvGemm& p = c.gemm;
  const int64_t taps = c.pack.tap_count(), distance = c.packs ? c.pack.pitch : tap_distance(c.pack);
  const int64_t row_stride = c.packs ? c.pack.row_pitch() : c.pack.row_stride;
  const GlobalTensor tensor{.type = kWgmmaTensorType<scalar_t>,
                            .rank = 3,
                            .data = const_cast<void*>(filters),
                            .sizes = {static_cast<uint64_t>(p.depth.lead), static_cast<uint64_t>(taps),
                                      static_cast<uint64_t>(p.groups * p.rows)},
                            .strides = {0, distance * sizeof(scalar_t), row_stride * sizeof(scalar_t)}};
  TiledBox box{.sizes = {kWgmmaStepDepth<scalar_t>, 1, Tile::kM}};
  box.swizzle = TensorSwizzle::k128B;
  const Status status = encode_tiled(maps.a, tensor, box);
  if (!status.ok()) return status;
  return encode_b<scalar_t>(maps, c, b, p.groups * p.depth.lead, p.cols.lead, p.b_col_lead, Tile::kN);
}

template <typename scalar_t>
Status encode_positions(WgmmaMaps& maps, const WgmmaConv& c, const void* grad_y, const void* x) {
  const ConvGemm& p = c.gemm;
  constexpr uint32_t kBox = kWgmmaStepDepth<scalar_t>;
  const GlobalTensor tensor =
      activations<scalar_t>(grad_y, c.problem.has_depth, p.groups * p.rows, p.depth.lead, p.depth.spatial,
                            p.a_depth[0], {p.a_depth[1], p.a_depth[2], p.a_depth[3]});
  Im2colBox box{};
  box.channels = box.pixels = kBox;
  box.swizzle = TensorSwizzle::k128B;
  const Status status = encode_im2col(maps.a, tensor, box);
  if (!status.ok()) return status;
  return encode_b<scalar_t>(maps, c, x, p.groups * p.cols.lead, p.depth.lead, p.b_depth_lead, kBox);
}

}  // namespace
}  // namespace fastnn::cuda
