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
#include "conv_product_plan.cuh"
#include "conv_variant.h"
#include "conv_wgmma_tiles.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

struct WgmmaConv {
  ConvGemm gemm;
  WgmmaProblem problem;
  WgmmaTiles tiles;
  WgmmaReduction reduction;
  FilterPack pack;
  bool packs;
  int way, ways;  // which of how many tiles and splits
  double cycles;  // that it should take
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
         taps * p.depth.lead <= kMost && p.groups * p.rows <= kMost && p.groups <= kMaxPackGroups && !p.wide &&
         p.rows >= kMinProductRows;
}

// ---- tile and split -------------------------------------------------------------------------------------

// Cycles of a block, roughly: what is compared is whole tiles against parts of them. Out leaves at some 64
// bytes a cycle, partial sums, twice as many bytes, at the 32 of the way to L2. The first loads of a tile hide
// behind the one before it, but its last products do not.
template <typename Tile>
constexpr double kFinishCycles = 500 + Tile::kM * Tile::kN / 32.0;
template <typename Tile>
constexpr double kFinishPartialCycles = 500 + Tile::kTurn * Tile::kM * Tile::kN / 8.0;
// A launch, and each partial sum read once more by all multiprocessors.
template <typename Tile>
double wgmma_sum_cycles(double parts, int64_t blocks) {
  return 4000 + parts * Tile::kTurn * Tile::kM * Tile::kN / 8 / static_cast<double>(blocks);
}

// Of two neighbouring row tiles, which share B, or two column tiles, which share A: whichever leaves fewer
// tiles alone.
template <typename Tile>
bool pairs_share_b(int64_t rows) {
  return ceil_div(rows, Tile::kM) % kWgmmaCluster == 0;
}
template <typename Tile>
int64_t pairs_m(int64_t rows) {
  const int64_t tiles = ceil_div(rows, Tile::kM);
  return pairs_share_b<Tile>(rows) ? tiles / kWgmmaCluster : tiles;
}
template <typename Tile>
int64_t pairs_n(int64_t rows, int64_t cols) {
  const int64_t tiles = ceil_div(cols, Tile::kN);
  return pairs_share_b<Tile>(rows) ? tiles : ceil_div(tiles, kWgmmaCluster);
}

struct WgmmaChoice {
  WgmmaTiles tiles;
  int64_t parts;  // kTaps: splits of a tile; kPositions: runs
  int64_t steps;  // of each
  double cycles = std::numeric_limits<double>::infinity();
  int way = 0, ways = 0;
};

// The fastest of those that consider() is called with, or number `way` of them, if there are so many.
class WgmmaChooser {
 public:
  explicit WgmmaChooser(int way) : asked_(way) {}

  void consider(WgmmaChoice choice) {
    choice.way = count_++;
    if (choice.way == asked_ || (!found_ && choice.cycles < best_.cycles)) best_ = choice;
    found_ = found_ || choice.way == asked_;
  }
  WgmmaChoice chosen() const {
    WgmmaChoice choice = best_;
    choice.ways = count_;
    return choice;
  }

 private:
  const int asked_;
  int count_ = 0;
  bool found_ = false;
  WgmmaChoice best_{};
};

// Either one block has all chunks or each has one: the bits do not depend on which.
inline WgmmaChoice choose_taps(const ConvGemm& p, const WgmmaProblem& problem, int way) {
  WgmmaChooser chooser(way);
  const int64_t clusters = std::max(device_limits().multiprocessors / kWgmmaCluster, 1);
  const int64_t deepest = problem.classes[0].steps;
  const auto consider = [&]<typename Tile>(TypeTag<Tile>, WgmmaTiles kind, int64_t steps) {
    const int64_t parts = std::max<int64_t>(ceil_div(deepest, std::max<int64_t>(steps, 1)), 1);
    const double finish = parts > 1 ? kFinishPartialCycles<Tile> : kFinishCycles<Tile>;
    int64_t pairs = 0;
    for (int i = 0; i < problem.class_count; ++i) {
      pairs += pairs_m<Tile>(p.rows) * pairs_n<Tile>(p.rows, problem.classes[i].cols) * p.groups * parts;
    }
    const double busy = std::min(static_cast<double>(pairs) / static_cast<double>(clusters), 1.0);
    const double step = Tile::step_cycles(pairs_share_b<Tile>(p.rows), busy);
    double work = 0, longest = 0;
    for (int i = 0; i < problem.class_count; ++i) {
      const int64_t of_class =
          pairs_m<Tile>(p.rows) * pairs_n<Tile>(p.rows, problem.classes[i].cols) * p.groups;
      const double cycles = std::min<double>(steps, problem.classes[i].steps) * step + finish;
      work += static_cast<double>(of_class * parts) * cycles;
      longest = std::max(longest, cycles);
    }
    // Equal tiles end in rounds; of unequal ones, the longest first, the blocks end within a short one.
    double cycles = problem.class_count > 1 ? std::max(work / static_cast<double>(clusters), longest) + finish
                                            : static_cast<double>(ceil_div(pairs, clusters)) * longest;
    if (parts > 1) cycles += wgmma_sum_cycles<Tile>(static_cast<double>(pairs), clusters);
    chooser.consider({kind, parts, steps, cycles});
  };
  // Classes are many tiles already, and their depths differ.
  const int64_t chunk = std::min<int64_t>(deepest, kWgmmaChunkSteps);
  for (const int64_t steps : {deepest, chunk}) {
    if (steps == chunk && chunk != deepest && problem.class_count > 1) break;
    if (p.rows <= FewRowsWgmmaTile::kM) {
      consider(TypeTag<FewRowsWgmmaTile>{}, WgmmaTiles::kFewRows, steps);
      continue;
    }
    if (steps <= kWgmmaChunkSteps) consider(TypeTag<WideWgmmaTile>{}, WgmmaTiles::kWide, steps);
    consider(TypeTag<TallWgmmaTile>{}, WgmmaTiles::kTall, steps);
    consider(TypeTag<SquareWgmmaTile>{}, WgmmaTiles::kSquare, steps);
  }
  return chooser.chosen();
}

// The steps of all tiles, one tile after the other, are cut in runs of equal length: one for each cluster of a
// full grid, or fewer where partial sums would cost more than the steps. A constant grid: runs decide the order
// of sums.
inline WgmmaChoice choose_positions(const ConvGemm& p, int64_t cols, int64_t steps, int way) {
  WgmmaChooser chooser(way);
  const auto consider = [&]<typename Tile>(TypeTag<Tile>, WgmmaTiles kind) {
    constexpr int64_t kClusters = kFullGrid / kWgmmaCluster;
    const int64_t pairs = pairs_m<Tile>(p.rows) * pairs_n<Tile>(p.rows, cols) * p.groups, all = pairs * steps;
    for (int64_t wanted = kClusters; wanted > 0; wanted /= 2) {
      const int64_t each = ceil_div(all, wanted), runs = ceil_div(all, each);
      // A run begins and ends within a tile, mostly.
      const double ends = static_cast<double>(each) / static_cast<double>(steps) + (runs > pairs ? 1 : 0);
      const double cycles = static_cast<double>(each) * Tile::step_cycles(pairs_share_b<Tile>(p.rows), 1) +
                            std::max(ends, 1.0) * kFinishPartialCycles<Tile> +
                            wgmma_sum_cycles<Tile>(static_cast<double>(std::max(runs, pairs)), kClusters);
      chooser.consider({kind, runs, each, cycles});
    }
  };
  if (p.rows <= TurnsWgmmaTile::kM) {
    consider(TypeTag<TurnsWgmmaTile>{}, WgmmaTiles::kTurns);
  } else {
    consider(TypeTag<TallWgmmaTile>{}, WgmmaTiles::kTall);
    consider(TypeTag<SquareWgmmaTile>{}, WgmmaTiles::kSquare);
  }
  return chooser.chosen();
}

// Calls f(TypeTag<Tile>{}). Which tiles there are depends on the direction, so that no kernel is compiled in
// vain.
template <WgmmaReduction kReduction, typename F>
auto dispatch_wgmma_tile(WgmmaTiles tiles, F&& f) {
  if (tiles == WgmmaTiles::kTall) return f(TypeTag<TallWgmmaTile>{});
  if (tiles == WgmmaTiles::kSquare) return f(TypeTag<SquareWgmmaTile>{});
  if constexpr (kReduction == WgmmaReduction::kPositions) {
    return f(TypeTag<TurnsWgmmaTile>{});
  } else {
    return tiles == WgmmaTiles::kWide ? f(TypeTag<WideWgmmaTile>{}) : f(TypeTag<FewRowsWgmmaTile>{});
  }
}

// Enters tile and pairs; `cols_of` gives a class's columns, padded as the tile wants them. False where there
// are too many to count.
template <WgmmaReduction kReduction, typename ColsOf>
bool enter_choice(WgmmaConv& c, const WgmmaChoice& choice, ColsOf&& cols_of) {
  WgmmaProblem& p = c.problem;
  c.tiles = choice.tiles;
  c.way = choice.way;
  c.ways = choice.ways;
  c.cycles = choice.cycles;
  p.splits = kReduction == WgmmaReduction::kPositions ? 1 : static_cast<uint32_t>(choice.parts);
  p.runs = static_cast<uint32_t>(choice.parts);
  p.split_steps = static_cast<int32_t>(choice.steps);
  int64_t total = 0;
  dispatch_wgmma_tile<kReduction>(choice.tiles, [&]<typename Tile>(TypeTag<Tile>) {
    p.shares_b = pairs_share_b<Tile>(p.rows);
    for (int s = 0; s < kWgmmaSubsteps; ++s) {
      const int box = s / p.box_substeps(), within = s % p.box_substeps() * (kWgmmaStepBytes / kWgmmaSubsteps);
      p.substep_a[s] = static_cast<uint32_t>(box * Tile::kM * p.box_bytes() + within);
      p.substep_b[s] = static_cast<uint32_t>(box * Tile::kN * p.box_bytes() + within);
    }
    p.pairs_m = static_cast<uint32_t>(pairs_m<Tile>(p.rows));
    for (int i = 0; i < p.class_count; ++i) {
      WgmmaClass& k = p.classes[i];
      k.pairs_n = static_cast<uint32_t>(pairs_n<Tile>(p.rows, cols_of(k)));
      const int64_t pairs = int64_t{p.pairs_m} * k.pairs_n * p.splits * p.groups;
      k.pairs = static_cast<uint32_t>(pairs);
      total += pairs;
    }
  });
  p.pairs = static_cast<uint32_t>(total);
  p.out_is_partial = kReduction == WgmmaReduction::kPositions || p.splits > 1;
  const int64_t counted =
      kReduction == WgmmaReduction::kPositions ? total * p.classes[0].steps + choice.steps : total;
  return counted <= std::numeric_limits<int32_t>::max();
}

// Parts of k that the sums of any tile come in.
inline int64_t partial_slots(const WgmmaConv& c) {
  const WgmmaProblem& p = c.problem;
  if (!p.out_is_partial) return 0;
  if (c.reduction != WgmmaReduction::kPositions) return p.splits;
  const int64_t runs = std::min<int64_t>(ceil_div(p.classes[0].steps, p.split_steps) + 1, p.runs);
  return runs * (c.tiles == WgmmaTiles::kTurns ? TurnsWgmmaTile::kTurn : 1);
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
inline WgmmaClass class_of(const ConvGemm& p, const FilterPack& filters, const WgmmaProblem& q,
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
  c.tap_count = static_cast<int32_t>(taps);
  c.steps = static_cast<int32_t>(ceil_div(taps, q.boxes()) * q.steps_of_tap);
  return c;
}

// False where mma.sync has to do. `w` has the strides that `filters` says; `b` those of p.
template <typename scalar_t>
bool plan_wgmma_taps(WgmmaConv& c, const ConvGemm& p, const FilterPack& filters, bool may_lie_across,
                     const void* w, const void* b, const void* out, int way) {
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
  c.gemm.out_rows_first = true;  // so do partial sums lie
  WgmmaProblem& q = c.problem;
  q.groups = static_cast<uint32_t>(p.groups);
  q.rows = static_cast<int32_t>(p.rows);
  q.leads = static_cast<int32_t>(leads);
  q.steps_of_tap = static_cast<int32_t>(ceil_div(leads, kWgmmaStepDepth<scalar_t>));
  const int64_t substeps = ceil_div(leads, kWgmmaSubstepDepth<scalar_t>);
  q.box_shift = substeps == 1 ? 2 : substeps == 2 ? 1 : 0;
  q.last_substeps = q.box_shift > 0
                        ? kWgmmaSubsteps
                        : static_cast<int32_t>(substeps - int64_t{q.steps_of_tap - 1} * kWgmmaSubsteps);
  q.filter_taps = static_cast<int32_t>(filters.tap_count());
  q.b_channels = static_cast<int32_t>(p.groups * leads);
  q.has_depth = p.limit[0] != 1 || s[0] != 1 || p.classes[0] != 1 || filters.taps[0] != 1 || p.origin[0] != 0;
  q.out_group = p.out_group;
  std::copy_n(p.out_col, 4, q.out_col);
  q.activation = p.activation;
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
        q.classes[q.class_count++] = class_of(p, filters, q, {d, h, w_residue});
      }
    }
  }
  const auto end = q.classes + q.class_count;
  std::stable_sort(q.classes, end, [](const auto& x, const auto& y) { return x.steps > y.steps; });
  if (!std::all_of(q.classes, end, [&](const WgmmaClass& k) { return fits_im2col(q, k, p.limit); }))
    return false;

  // In place: taps at one distance, and side by side either leads or, of half types, rows.
  const int64_t distance = tap_distance(filters);
  const bool has_maps = distance > 0 && distance % kVec == 0 && is_aligned(w);
  const auto is_step = [](int64_t stride) { return stride > 0 && stride % kVec == 0; };
  const bool along_k = has_maps && filters.lead_stride == 1 && is_step(filters.row_stride) &&
                       (p.groups == 1 || filters.group_stride == p.rows * filters.row_stride);
  const bool across_k = has_maps && may_lie_across && sizeof(scalar_t) == 2 && filters.row_stride == 1 &&
                        is_step(filters.lead_stride) &&
                        (p.groups == 1 || filters.group_stride == leads * filters.lead_stride);
  c.reduction = along_k || !across_k ? WgmmaReduction::kTaps : WgmmaReduction::kTapsAcrossRows;
  c.packs = !along_k && !across_k;
  c.pack = filters;
  c.pack.flat = false;
  c.pack.pitch = leads;
  return enter_choice<WgmmaReduction::kTaps>(c, choose_taps(p, q, way),
                                             [](const WgmmaClass& k) { return k.cols; });
}

template <typename scalar_t>
bool plan_wgmma(WgmmaConv& c, const ConvForwardParams& p) {
  return plan_wgmma_taps<scalar_t>(c, forward_problem(p), filters_of(p.geometry, p.w_strides, true), false, p.w,
                                   p.x, p.y, way_of(p.variant, ConvKernels::kWgmma));
}

template <typename scalar_t>
bool plan_wgmma(WgmmaConv& c, const ConvGradInputParams& p) {
  return plan_wgmma_taps<scalar_t>(c, grad_input_problem(p), filters_of(p.geometry, p.w_strides, false), true,
                                   p.w, p.grad_y, p.grad_x, way_of(p.variant, ConvKernels::kWgmma));
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
  c.reduction = WgmmaReduction::kPositions;
  WgmmaProblem& q = c.problem;
  q.groups = static_cast<uint32_t>(p.groups);
  q.rows = static_cast<int32_t>(p.rows);
  q.leads = static_cast<int32_t>(channels);
  q.steps_of_tap = static_cast<int32_t>(ceil_div(channels, kWgmmaStepDepth<scalar_t>));
  q.last_substeps = kWgmmaSubsteps;
  q.has_depth = g.in[0] != 1 || g.out[0] != 1 || g.kernel[0] != 1 || g.pad[0] != 0;
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
  return enter_choice<WgmmaReduction::kPositions>(
      c, choose_positions(p, padded, k.steps, way_of(params.variant, ConvKernels::kWgmma)),
      [&](const WgmmaClass&) { return padded; });
}

}  // namespace
}  // namespace fastnn::cuda
