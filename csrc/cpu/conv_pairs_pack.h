// Packs bfloat16 operands as pairs for conv_pairs.h.
//
// A panel is either [step][item], one pair for each row or column of the product, or, for rows alone,
// [item][step], runs of the reduction that are copies of memory. Interleaving two runs of items costs two
// loads, four other instructions and a store for each vector of 16 pairs; exchanging items and steps is a
// transpose of 32-bit elements, 96 instructions for 256. Against the multiply-adds of 64 filters that is 7 %;
// what costs more are cache misses, so packers walk memory line by line and ask ahead. Pairs are of neighbours
// in the reduction, whatever tap, row or image they are of. Where it has an odd number of elements the last
// pair's second is 0 in both operands, so that NaN and infinity meet no zero that is not there.
#pragma once

#include "conv_pairs.h"

#if defined(__AVX512BF16__)

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "conv_in_place.h"
#include "conv_pack_weights.h"
#include "conv_patches.h"
#include "masked_lanes.h"

namespace fastnn::FASTNN_BACKEND {

using Bf16 = c10::BFloat16;

inline uint32_t bits_of(const Bf16* src) {
  uint16_t bits;
  std::memcpy(&bits, src, sizeof(bits));
  return bits;
}

// The first `count` elements in the low halves of the lanes.
inline __m512i load_low(const Bf16* src, int64_t count) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), src));
}

inline __m512i paired(__m512i even, __m512i odd) { return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)); }

// dst[i] = (even[i], odd[i]).
inline void interleave(const Bf16* even, const Bf16* odd, int64_t count, uint32_t* dst) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    _mm512_storeu_si512(dst + i, paired(load_low(even + i, 16), load_low(odd + i, 16)));
  }
  if (i < count) {
    _mm512_mask_storeu_epi32(dst + i, first_lanes(count - i),
                             paired(load_low(even + i, count - i), load_low(odd + i, count - i)));
  }
}

// Exchanges rows and columns of `count` vectors of 16 lanes, 8 or 16: vector i then has columns i, or columns
// 2i and 2i + 1. Interleaving row i with row i + count / 2 rotates the bits of (row, column) by one.
template <int count>
void transpose_lanes(__m512i (&a)[count]) {
  __m512i b[count];
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
  for (int step = 1; step < count; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count / 2; ++i) {
      b[2 * i] = _mm512_permutex2var_epi32(a[i], low, a[i + count / 2]);
      b[2 * i + 1] = _mm512_permutex2var_epi32(a[i], high, a[i + count / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) a[i] = b[i];
  }
}

// place(j)[i] = lane j of load(i) for i < items, j < lanes, both at most 16. place is called once for each
// lane, in order; lanes for which it is null are left out.
template <typename Load, typename PlaceOf>
void store_transposed(int64_t items, int64_t lanes, Load&& load, PlaceOf&& place) {
  if (items == 8) {
    __m512i a[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a[i] = load(i);
    transpose_lanes(a);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      if (j >= lanes) break;
      const __m256i column =
          j % 2 == 0 ? _mm512_castsi512_si256(a[j / 2]) : _mm512_extracti64x4_epi64(a[j / 2], 1);
      if (uint32_t* const dst = place(j)) _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), column);
    }
    return;
  }
  __m512i a[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = i < items ? load(i) : _mm512_setzero_si512();
  transpose_lanes(a);
  const __mmask16 mask = first_lanes(items);
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    if (j >= lanes) break;
    if (uint32_t* const dst = place(j)) _mm512_mask_storeu_epi32(dst, mask, a[j]);
  }
}

// dst[p * pitch + i] = (row i)[2p], (row i)[2p + 1] of rows `src_pitch` apart with `count` elements each.
inline void transpose_pairs(const Bf16* src, int64_t src_pitch, int64_t items, int64_t count, uint32_t* dst,
                            int64_t pitch) {
  for (int64_t i = 0; i < items; i += 16) {
    for (int64_t d = 0; d < count; d += 32) {
      const int64_t left = std::min<int64_t>(32, count - d);
      const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << left) - 1);
      store_transposed(
          std::min<int64_t>(16, items - i), (left + 1) / 2,
          [&](int64_t k) { return _mm512_maskz_loadu_epi16(mask, src + (i + k) * src_pitch + d); },
          [&](int64_t p) { return dst + (d / 2 + p) * pitch + i; });
    }
  }
}

// What is read where a tap is outside: a block of the reduction.
alignas(64) inline constexpr uint32_t kZeroPairs[kDepthBlock] = {};
inline const Bf16* zeros() { return reinterpret_cast<const Bf16*>(kZeroPairs); }

// Writes where each position has the first channel of `tap`.
template <typename Address>
void address_positions(const PatchMatrix<Bf16>& matrix, const PositionRuns& positions, const TapRun& tap,
                       Address* address) {
  const int64_t step = matrix.positions.stride[3];
  const InsideRange range(matrix.step[2], tap.width, matrix.extent[2]);
  for (int64_t r = 0; r < positions.count; ++r) {
    const PositionRun& run = positions.run[r];
    int64_t first = 0, last = 0;
    if (inside(run.depth + tap.depth, matrix.extent[0]) && inside(run.height + tap.height, matrix.extent[1])) {
      first = std::clamp<int64_t>(range.first - run.width, 0, run.count);
      last = std::clamp<int64_t>(range.last - run.width, first, run.count);
    }
    Address* const place = address + run.begin;
    const Bf16* const src = matrix.data + run.offset + tap.offset;
    for (int64_t p = 0; p < run.count; ++p) {
      place[p] = reinterpret_cast<Address>(p >= first && p < last ? src + p * step : zeros());
    }
  }
}

// ---- filters ----

// Where the steps of a panel lie that is packed for the whole reduction: see BlockedPanel.
struct PairPanel {
  uint32_t* data;
  int64_t pitch, depth_block, block_stride;
  BlockedPanel<uint32_t> from(int64_t step) const { return {data, pitch, depth_block, block_stride, step}; }
};

// Elements of a filter's channel that are packed as taps when they are innermost.
inline constexpr int64_t kMaxTapSpread = 64;

// Packs filters [first, last) as [step][item], for the whole reduction.
inline void pack_filter_pairs(const PatchMatrix<Bf16>& matrix, int64_t first, int64_t last,
                              const PairPanel& panel) {
  const Axis& depth = matrix.depth;
  const int64_t length = depth.length(), item_stride = matrix.positions.stride[3];
  if (length == 0) return;  // residues of grad_input may have no tap
  const Bf16* const src = matrix.data + matrix.origin_offset + AxisCursor(matrix.positions, first).offset();
  const int64_t channels = depth.size[3], stride = depth.stride[3];
  const bool transposed = channels % 2 == 0 && item_stride != 1;
  int64_t spread = 0;  // from the first tap to the last
  for (int i = 0; i < 3; ++i) spread += (depth.size[i] - 1) * depth.stride[i];
  if (transposed && stride == 1) {
    for (int64_t i = 0; i < last - first; i += 16) {
      const int64_t items = std::min<int64_t>(16, last - first - i);
      BlockedPanel<uint32_t> place = panel.from(0);
      AxisCursor cursor(depth, 0);
      for (int64_t d = 0; d < length; cursor.advance(channels), d += channels) {
        const Bf16* const run = src + i * item_stride + cursor.offset();
        for (int64_t c = 0; c < channels; c += 32) {
          const int64_t left = std::min<int64_t>(32, channels - c);
          const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << left) - 1);
          store_transposed(
              items, left / 2,
              [&](int64_t k) { return _mm512_maskz_loadu_epi16(mask, run + c + k * item_stride); },
              [&](int64_t) { return place.next() + i; });
        }
      }
    }
    return;
  }
  if (transposed && spread < kMaxTapSpread) {
    // Taps are innermost, all or those of one residue: a vector holds neighbours in memory of one item and two
    // channels, of which some are taps.
    for (int64_t i = 0; i < last - first; i += 16) {
      const int64_t items = std::min<int64_t>(16, last - first - i);
      BlockedPanel<uint32_t> place[kMaxTapSpread];
      bool is_tap[kMaxTapSpread] = {};
      AxisCursor tap(depth, 0);
      for (int64_t d = 0; d < length; tap.advance(channels), d += channels) {
        place[tap.offset()] = panel.from(d / 2);
        is_tap[tap.offset()] = true;
      }
      for (int64_t c = 0; c < channels; c += 2) {
        const Bf16* const run = src + i * item_stride + c * stride;
        for (int64_t t = 0; t <= spread; t += 16) {
          const int64_t lanes = std::min<int64_t>(16, spread + 1 - t);
          store_transposed(
              items, lanes,
              [&](int64_t k) {
                const Bf16* const even = run + t + k * item_stride;
                return paired(load_low(even, lanes), load_low(even + stride, lanes));
              },
              [&](int64_t l) { return is_tap[t + l] ? place[t + l].next() + i : nullptr; });
        }
      }
    }
    return;
  }
  AxisCursor even_at(depth, 0), odd_at(depth, std::min<int64_t>(1, length - 1));
  BlockedPanel<uint32_t> place = panel.from(0);
  for (int64_t d = 0; d < length; d += 2) {
    uint32_t* const dst = place.next();
    const Bf16* const low = src + even_at.offset();
    const bool alone = d + 1 == length;
    const Bf16* const high = alone ? zeros() : src + odd_at.offset();
    if (item_stride == 1) {
      interleave(low, high, last - first, dst);
    } else {
      for (int64_t i = 0; i < last - first; ++i) {
        dst[i] = bits_of(low + i * item_stride) | (alone ? 0 : bits_of(high + i * item_stride) << 16);
      }
    }
    if (d + 2 < length) even_at.advance(1), even_at.advance(1);
    if (d + 3 < length) odd_at.advance(1), odd_at.advance(1);
  }
}

// ---- patches, reduction over (tap, channel): columns are positions ----

// Lanes of two elements of which the first, of a run that begins at every other element.
inline __mmask32 even_elements(uint32_t mask) {
  uint64_t spread = mask;
  spread = (spread | spread << 8) & 0x00ff00ff;
  spread = (spread | spread << 4) & 0x0f0f0f0f;
  spread = (spread | spread << 2) & 0x33333333;
  spread = (spread | spread << 1) & 0x55555555;
  return static_cast<__mmask32>(spread);
}

// 16 positions of a tap in the low halves of the lanes, from num_pieces runs of memory, `stride` 1 or 2 apart.
template <int num_pieces, int stride>
struct PositionLanes {
  __mmask32 mask[num_pieces];
  const Bf16* src[num_pieces];

  PositionLanes(const Bf16* data, const RowPieces<kMaxPanelSpan>& pieces, int64_t first) {
    for (int i = 0; i < num_pieces; ++i) {
      const auto& piece = pieces.piece[first + i];
      mask[i] = stride == 1 ? piece.mask : even_elements(piece.mask);
      src[i] = data + piece.offset;
    }
  }
  void prefetch(int64_t offset) const {
    for (int i = 0; i < num_pieces; ++i) _mm_prefetch(src[i] + offset, _MM_HINT_T0);
  }
  __m512i operator()(int64_t offset) const {
    if constexpr (stride == 2) {
      __m512i lanes = _mm512_maskz_loadu_epi16(mask[0], src[0] + offset);
#pragma GCC unroll 8
      for (int i = 1; i < num_pieces; ++i) lanes = _mm512_mask_loadu_epi16(lanes, mask[i], src[i] + offset);
      return lanes;
    } else {
      __m256i lanes = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask[0]), src[0] + offset);
#pragma GCC unroll 8
      for (int i = 1; i < num_pieces; ++i) {
        lanes = _mm256_mask_loadu_epi16(lanes, static_cast<__mmask16>(mask[i]), src[i] + offset);
      }
      return _mm512_cvtepu16_epi32(lanes);
    }
  }
};

// Channels whose vectors are packed one after the other: each lies in a page of its own, for which the
// processor keeps 72 addresses at hand.
inline constexpr int64_t kPackedChannels = 8;

// Calls f(v, load) for each of `vecs` vectors of 16 positions of a tap: load(offset) reads the channel that is
// `offset` elements from the one at `data`. The number of runs is known to the compiler, so that a channel
// costs a load for each and no branch.
template <int stride, typename F>
void for_each_position_vector(const Bf16* data, const RowPieces<kMaxPanelSpan>& pieces, int64_t vecs, F&& f) {
  for (int64_t v = 0, first = 0; v < vecs; first = pieces.end[v++]) {
    switch (pieces.end[v] - first) {
      case 0:
        f(v, [](int64_t) { return _mm512_setzero_si512(); });
        break;
      case 1:
        f(v, PositionLanes<1, stride>(data, pieces, first));
        break;
      case 2:
        f(v, PositionLanes<2, stride>(data, pieces, first));
        break;
      case 3:
        f(v, PositionLanes<3, stride>(data, pieces, first));
        break;
      case 4:
        f(v, PositionLanes<4, stride>(data, pieces, first));
        break;
      default:
        f(v, [&](int64_t offset) {
          __m512i lanes = _mm512_setzero_si512();
          for (int64_t i = first; i < pieces.end[v]; ++i) {
            lanes = _mm512_or_si512(lanes, PositionLanes<1, stride>(data, pieces, i)(offset));
          }
          return lanes;
        });
    }
  }
}

// Writes the channels of a tap, the elements [begin, end) of the panel, of 16 positions: dst[element /
// 2][pitch].
template <typename Load>
void pair_channels(const Load& load, int64_t begin, int64_t end, int64_t stride, uint32_t* dst, int64_t pitch) {
  int64_t d = begin, at = 0;
  uint32_t* place = dst + d / 2 * pitch;
  if (d % 2 == 1) {  // the first of this pair is another tap's
    _mm512_storeu_si512(place, paired(_mm512_loadu_si512(place), load(at)));
    ++d, at += stride, place += pitch;
  }
  for (; d + 2 <= end; d += 2, at += 2 * stride, place += pitch) {
    _mm512_storeu_si512(place, paired(load(at), load(at + stride)));
  }
  if (d < end) _mm512_storeu_si512(place, load(at));
}

// dst[p * width + position] for steps of the elements [k0, k1), k0 even, k1 - k0 <= kMaxPanelSpan.
inline void pack_position_pairs(const PatchMatrix<Bf16>& matrix, const PositionRuns& positions, int64_t k0,
                                int64_t k1, int64_t width, uint32_t* dst) {
  const TapRuns taps(matrix, k0, k1);
  const int64_t stride = matrix.depth.stride[3], position_stride = matrix.positions.stride[3];
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    const RowCopies copies(matrix, positions, tap);
    const int64_t begin = tap.begin, end = tap.begin + tap.channels;
    if (position_stride == 1 || position_stride == 2) {
      const RowPieces<kMaxPanelSpan> pieces(copies, 16, width / 16, position_stride);
      for (int64_t d = begin, next; d < end; d = next) {
        next = std::min(end, d - d % 2 + kPackedChannels);
        const auto pair = [=](int64_t v, const auto& load) {
          pair_channels(load, d, next, stride, dst + v * 16, width);
        };
        const Bf16* const src = matrix.data + (d - begin) * stride;
        if (position_stride == 1) {
          for_each_position_vector<1>(src, pieces, width / 16, pair);
        } else {
          for_each_position_vector<2>(src, pieces, width / 16, pair);
        }
      }
      continue;
    }
    const Bf16* src = matrix.data;
    for (int64_t d = begin; d < end; ++d, src += stride) {
      uint32_t* const row = dst + d / 2 * width;
      if (d % 2 == 0) std::memset(row, 0, width * sizeof(uint32_t));
      for (int64_t i = 0; i < copies.count; ++i) {
        const RowCopy& copy = copies.copy[i];
        for (int64_t p = 0; p < copy.count; ++p) {
          row[copy.begin + p] |= bits_of(src + copy.offset + p * position_stride) << (d % 2 * 16);
        }
      }
    }
  }
}

// ---- patches, reduction over (tap, channel): rows are positions, in place or copied ----

// dst[position][d - k0] for elements [k0, k1), `pitch` pairs apart.
inline void copy_depth_runs(const PatchMatrix<Bf16>& matrix, const PositionRuns& positions, int64_t k0,
                            int64_t k1, Bf16* dst, int64_t pitch) {
  const TapRuns taps(matrix, k0, k1);
  const int64_t stride = matrix.depth.stride[3];
  const int64_t rows = positions.run[positions.count - 1].begin + positions.run[positions.count - 1].count;
  if ((k1 - k0) % 2 == 1) {
    for (int64_t p = 0; p < rows; ++p) dst[p * pitch + k1 - k0] = Bf16();
  }
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    const RowCopies copies(matrix, positions, tap);
    if (copies.covered < rows) {
      for (int64_t p = 0; p < rows; ++p) std::fill_n(dst + p * pitch + tap.begin, tap.channels, Bf16());
    }
    for (int64_t i = 0; i < copies.count; ++i) {
      const RowCopy& copy = copies.copy[i];
      for (int64_t p = 0; p < copy.count; ++p) {
        const Bf16* const from = matrix.data + copy.offset + p * matrix.positions.stride[3];
        Bf16* const to = dst + (copy.begin + p) * pitch + tap.begin;
        for (int64_t c = 0; c < tap.channels; ++c) to[c] = from[c * stride];
      }
    }
  }
}

// ---- reduction over positions ----

// dst[place][position] of `length` positions, at most kMaxPanelSpan, `pitch` elements apart, which leaves room
// for 15 more; those that make the length even are 0.
inline void copy_position_runs(const PatchMatrix<Bf16>& matrix, const PositionRuns& positions, int64_t length,
                               const TapRuns& taps, Bf16* dst, int64_t pitch) {
  const int64_t channel_stride = matrix.depth.stride[3], stride = matrix.positions.stride[3];
  const int64_t vecs = (length + 15) / 16;
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    const RowCopies copies(matrix, positions, tap);
    Bf16* row = dst + tap.begin * pitch;
    if (stride == 1 || stride == 2) {
      const RowPieces<kMaxPanelSpan> pieces(copies, 16, vecs, stride);
      for (int64_t c0 = 0; c0 < tap.channels; c0 += kPackedChannels) {
        const int64_t count = std::min(kPackedChannels, tap.channels - c0);
        const auto copy_channels = [=](int64_t v, const auto& load) {
          Bf16* place = row + c0 * pitch + v * 16;
          for (int64_t c = 0, at = 0; c < count; ++c, at += channel_stride, place += pitch) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), _mm512_cvtepi32_epi16(load(at)));
            if constexpr (requires { load.prefetch(at); }) load.prefetch(at + kPackedChannels * channel_stride);
          }
        };
        const Bf16* const src = matrix.data + c0 * channel_stride;
        if (stride == 1) {
          for_each_position_vector<1>(src, pieces, vecs, copy_channels);
        } else {
          for_each_position_vector<2>(src, pieces, vecs, copy_channels);
        }
      }
      continue;
    }
    const Bf16* src = matrix.data;
    for (int64_t c = 0; c < tap.channels; ++c, row += pitch, src += channel_stride) {
      if (copies.covered < vecs * 16) std::memset(static_cast<void*>(row), 0, vecs * 32);
      for (int64_t i = 0; i < copies.count; ++i) {
        const RowCopy& copy = copies.copy[i];
        for (int64_t p = 0; p < copy.count; ++p) row[copy.begin + p] = src[copy.offset + p * stride];
      }
    }
  }
}

// Where interleaved items go: panels of `height` items, [step][item], `panel_size` apart; one panel where that
// is 0.
struct InterleavedPanels {
  uint32_t* data;
  int64_t height, panel_size;
};

// Writes pairs of positions of places whose channels are contiguous: [panel][step][place].
inline void interleave_positions(const PatchMatrix<Bf16>& matrix, const PositionRuns& positions, int64_t length,
                                 const TapRuns& taps, const InterleavedPanels& panels) {
  // Neighbouring positions are lines apart: those of the next pairs are asked for ahead.
  constexpr int64_t kAhead = 16;
  const Bf16* address[kMaxPanelSpan + kAhead];
  for (int64_t t = 0; t < taps.count; ++t) {
    const TapRun& tap = taps.run[t];
    address_positions(matrix, positions, tap, address);
    std::fill_n(address + length, kAhead, zeros());
    for (int64_t p = 0; p < length; p += 2) {
      const Bf16 *const even = address[p], *const odd = address[p + 1];
      for (int64_t c = 0; c < tap.channels; c += 32) {
        _mm_prefetch(address[p + kAhead - 2] + c, _MM_HINT_T0);
        _mm_prefetch(address[p + kAhead - 1] + c, _MM_HINT_T0);
      }
      if (panels.height == 8 && tap.begin % 8 == 0) {
        uint32_t* dst = panels.data + tap.begin / 8 * panels.panel_size + p / 2 * 8;
        int64_t c = 0;
        for (; c + 16 <= tap.channels; c += 16, dst += 2 * panels.panel_size) {
          const __m512i pairs = paired(load_low(even + c, 16), load_low(odd + c, 16));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), _mm512_castsi512_si256(pairs));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + panels.panel_size),
                              _mm512_extracti64x4_epi64(pairs, 1));
        }
        for (; c < tap.channels; c += 8, dst += panels.panel_size) {
          interleave(even + c, odd + c, std::min<int64_t>(8, tap.channels - c), dst);
        }
        continue;
      }
      if (panels.panel_size == 0) {
        interleave(even, odd, tap.channels, panels.data + p / 2 * panels.height + tap.begin);
        continue;
      }
      for (int64_t c = 0; c < tap.channels;) {
        const int64_t item = tap.begin + c, within = item % panels.height;
        const int64_t count = std::min(tap.channels - c, panels.height - within);
        interleave(even + c, odd + c, count,
                   panels.data + item / panels.height * panels.panel_size + p / 2 * panels.height + within);
        c += count;
      }
    }
  }
}

}  // namespace fastnn::FASTNN_BACKEND

#endif
