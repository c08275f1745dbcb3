// The loading thread of conv_wgmma.cuh: which boxes of A and B make up a step, and where they go.
//
// Of the operand that the two blocks of a cluster share each loads half, and both get it: half of the rows or
// pixels where it lies along k, half of each panel's k where it lies across.
#pragma once

#include <cstdint>

#include "conv_wgmma_maps.cuh"
#include "conv_wgmma_tiles.cuh"
#include "mbarrier.cuh"
#include "platform.cuh"
#include "tma.cuh"

namespace fastnn::cuda {
namespace {

constexpr uint16_t kBothBlocks = (1 << kWgmmaCluster) - 1;

// Where a load goes, and to whom.
struct LoadTo {
  unsigned char* stage;
  Mbarrier* full;
};

__device__ __forceinline__ void load_box(const LoadTo& to, int offset, const TensorMap* map, bool shared,
                                         const int (&at)[3]) {
  if (shared) {
    tensor_load_multicast<3>(to.stage + offset, map, at, to.full, kBothBlocks);
  } else {
    tensor_load<3>(to.stage + offset, map, at, to.full);
  }
}

// Where a tap is in B, as an im2col load takes it.
struct TapOffset {
  int d, h, w;
};

// Pixels from `at` on, `channel` and the channels after it.
__device__ __forceinline__ void load_pixels(const LoadTo& to, int offset, const TensorMap* map, bool shared,
                                            bool has_depth, int channel, const WgmmaPosition& at,
                                            const TapOffset& tap) {
  unsigned char* const stage = to.stage + offset;
  if (has_depth) {
    const int coordinates[] = {channel, at.w, at.h, at.d, at.n}, offsets[] = {tap.w, tap.h, tap.d};
    if (shared) {
      tensor_load_im2col_multicast<5>(stage, map, coordinates, offsets, to.full, kBothBlocks);
    } else {
      tensor_load_im2col<5>(stage, map, coordinates, offsets, to.full);
    }
  } else {
    const int coordinates[] = {channel, at.w, at.h, at.n}, offsets[] = {tap.w, tap.h};
    if (shared) {
      tensor_load_im2col_multicast<4>(stage, map, coordinates, offsets, to.full, kBothBlocks);
    } else {
      tensor_load_im2col<4>(stage, map, coordinates, offsets, to.full);
    }
  }
}

// B's coordinates of a position.
__device__ __forceinline__ WgmmaPosition pixel_of(const WgmmaProblem& p, const WgmmaClass& c,
                                                  WgmmaPosition at) {
  at.d = c.first[0] + at.d * p.col_step[0];
  at.h = c.first[1] + at.h * p.col_step[1];
  at.w = c.first[2] + at.w * p.col_step[2];
  return at;
}

// A tap as digits.
struct WgmmaTap {
  int d, h, w;

  __device__ __forceinline__ WgmmaTap(const WgmmaClass& c, int tap) {
    h = tap / c.taps[2];
    w = tap - h * c.taps[2];
    d = h / c.taps[1];
    h -= d * c.taps[1];
  }
  __device__ __forceinline__ void next(const WgmmaClass& c) {
    if (++w < c.taps[2]) return;
    w = 0;
    if (++h < c.taps[1]) return;
    h = 0;
    ++d;
  }
  __device__ __forceinline__ TapOffset offset(const WgmmaProblem& p, const WgmmaClass& c) const {
    return {c.offset[0] + d * p.offset_step[0], c.offset[1] + h * p.offset_step[1],
            c.offset[2] + w * p.offset_step[2]};
  }
  __device__ __forceinline__ int in_filter(const WgmmaProblem& p, const WgmmaClass& c) const {
    return c.filter_tap + d * p.filter_tap_step[0] + h * p.filter_tap_step[1] + w * p.filter_tap_step[2];
  }
};

// Both call begin_step(bytes) for each step, which waits for a free buffer, says where it is, and how many
// bytes it gets.
template <typename scalar_t, typename Tile, bool kAAlongK, typename BeginStep>
__device__ __forceinline__ void load_taps(const WgmmaProblem& p, const WgmmaMaps& maps, const WgmmaPlace& place,
                                          int rank, BeginStep&& begin_step) {
  constexpr int kHalfRows = Tile::kM / kWgmmaCluster, kHalfCols = Tile::kN / kWgmmaCluster;
  const WgmmaClass& c = p.classes[place.index];
  const int boxes = p.boxes(), box_bytes = p.box_bytes();
  const int half_b = p.shares_b ? rank : 0, half_a = p.shares_b ? 0 : rank;
  const WgmmaPosition at = pixel_of(p, c, WgmmaPosition(c, place.tile_n * Tile::kN + half_b * kHalfCols));
  // A tap has several steps or a step several taps.
  const int first_tap = place.first / p.steps_of_tap * boxes;
  int lead_step = place.first % p.steps_of_tap, taps_left = c.tap_count - first_tap;
  WgmmaTap tap(c, first_tap);
#pragma unroll 1
  for (int step = 0; step < place.steps; ++step) {
    const LoadTo to = begin_step(Tile::kStageBytes);
    const int lead = lead_step * kWgmmaStepDepth<scalar_t>;
#pragma unroll 1
    for (int box = 0; box < boxes; ++box) {
      // After the last tap a step is filled up with zeros.
      const bool exists = taps_left > 0;
      const int filter_tap = exists ? tap.in_filter(p, c) : p.filter_taps;
      const int channel = exists ? place.group * p.leads + lead : p.b_channels;
      if constexpr (kAAlongK) {
        const int row = place.group * p.rows + place.row0 + half_a * kHalfRows;
        load_box(to, (box * Tile::kM + half_a * kHalfRows) * box_bytes, &maps.a, !p.shares_b,
                 {lead, filter_tap, row});
      } else {
        const int half = (kPanelElements >> p.box_shift) / kWgmmaCluster;  // of a box's leads
        const int filter = place.group * p.leads + lead + half_a * half;
#pragma unroll
        for (int i = 0; i < Tile::kM / kPanelElements; ++i) {
          load_box(to, i * kPanelBytes + (box * kWgmmaCluster + half_a) * half * kWgmmaStepBytes, &maps.a,
                   !p.shares_b, {place.row0 + i * kPanelElements, filter_tap, filter});
        }
      }
      load_pixels(to, Tile::kABytes + (box * Tile::kN + half_b * kHalfCols) * box_bytes, &maps.b[place.index],
                  p.shares_b, p.has_depth, channel, at, tap.offset(p, c));
      if (++lead_step == p.steps_of_tap) {
        lead_step = 0;
        if (--taps_left > 0) tap.next(c);
      }
    }
  }
}

// `fresh`: buffers that nothing was loaded into so far. Panels past the last column are loaded into those
// alone, the last panel once more: what is multiplied must be something, though nobody stores what comes of it.
template <typename Tile, typename BeginStep>
__device__ __forceinline__ void load_positions(const WgmmaProblem& p, const WgmmaMaps& maps,
                                               const WgmmaPlace& place, int rank, int& fresh,
                                               BeginStep&& begin_step) {
  constexpr int kPanelsA = Tile::kM / kPanelElements, kPanelsB = Tile::kN / kPanelElements;
  constexpr int kHalf = kPanelElements / kWgmmaCluster, kHalfBytes = kPanelBytes / kWgmmaCluster;
  const WgmmaClass& c = p.classes[0];
  const int half_b = p.shares_b ? rank : 0, half_a = p.shares_b ? 0 : rank, last_panel = p.panels() - 1;
  const int first_panel = place.tile_n * kPanelsB, exist = last_panel - first_panel + 1;
  int channel[kPanelsB];
  TapOffset offset[kPanelsB];
#pragma unroll
  for (int j = 0; j < kPanelsB; ++j) {
    const int panel = j < exist ? first_panel + j : last_panel, tap = panel / p.steps_of_tap;
    channel[j] = place.group * p.leads + (panel - tap * p.steps_of_tap) * kPanelElements;
    offset[j] = WgmmaTap(c, tap).offset(p, c);
  }
#pragma unroll 1
  for (int step = 0; step < place.steps; ++step) {
    const int loaded = fresh > 0 || exist > kPanelsB ? kPanelsB : exist > 0 ? exist : 0;
    if (fresh > 0) --fresh;
    const LoadTo to = begin_step(Tile::kABytes + loaded * kPanelBytes);
    const int first = (place.first + step) * kPanelElements;
    const WgmmaPosition at_a(c, first + half_a * kHalf);
#pragma unroll
    for (int i = 0; i < kPanelsA; ++i) {
      load_pixels(to, i * kPanelBytes + half_a * kHalfBytes, &maps.a, !p.shares_b, p.has_depth,
                  place.group * p.rows + place.row0 + i * kPanelElements, at_a, {0, 0, 0});
    }
    const WgmmaPosition at_b = pixel_of(p, c, WgmmaPosition(c, first + half_b * kHalf));
#pragma unroll
    for (int j = 0; j < kPanelsB; ++j) {
      if (j >= loaded) break;
      load_pixels(to, Tile::kABytes + j * kPanelBytes + half_b * kHalfBytes, &maps.b[0], p.shares_b,
                  p.has_depth, channel[j], at_b, offset[j]);
    }
  }
}

}  // namespace
}  // namespace fastnn::cuda
