// Filters in the order in which the tensor-core products read them: a row of A after the other, of each row the
// taps in the order depth, height, width, of each tap the channels (of the data gradient: the filters), filled
// up with zeros to whole chunks of 16 bytes.
//
//   packed[group][row][tap][lead]    lead < pitch, the next multiple of 16 bytes
//   packed[group][row][tap * leads + lead]                the same without gaps but at the end, `flat`
//
// A block has 32 leads times 32 (row, tap)s; it reads along the leads or along the taps of neighbouring rows,
// whichever lie closer together, and writes along the leads, by way of shared memory. Bound by memory, some 3
// microseconds for the largest filters of ResNet-50 (4.7 MB in, 4.7 MB out, of L2 mostly); filters that lie as
// they are needed, channels_last in forward, are not packed.
#pragma once

#include <cstdint>

#include "conv_gemm_problem.cuh"
#include "conv_index.cuh"
#include "platform.cuh"
#include "vec.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kPackTile = 32;
constexpr int kPackLines = 8;  // lines of a tile that the block's threads cover at a time

struct FilterPack {
  int64_t groups, rows, leads;
  int64_t taps[kSpatialDims];
  int64_t group_stride, row_stride, lead_stride, tap_strides[kSpatialDims];  // of w
  int64_t pitch;  // from one tap to the next, of `flat` from one row to the next
  bool flat;
  bool reads_leads;  // along which threads run when they read

  int64_t tap_count() const { return taps[0] * taps[1] * taps[2]; }
  int64_t row_pitch() const { return flat ? pitch : pitch * tap_count(); }
  // What either order takes at the most.
  int64_t most_elements(int64_t vec) const {
    return groups * rows * tap_count() * (ceil_div(leads, vec) * vec);
  }
};

template <typename scalar_t>
__global__ void __launch_bounds__(kPackTile* kPackLines)
    conv_filter_pack_kernel(FilterPack p, const scalar_t* __restrict__ w, scalar_t* __restrict__ packed) {
  FASTNN_SHARED(scalar_t, tile, kPackTile * (kPackTile + 1));
  const int64_t taps = p.taps[0] * p.taps[1] * p.taps[2];
  const int64_t lines = p.rows * taps;
  const int64_t line0 = static_cast<int64_t>(blockIdx.x) * kPackTile;
  const int64_t lead0 = static_cast<int64_t>(blockIdx.y) * kPackTile;
  const int64_t group = blockIdx.z;
  const scalar_t zero = from_acc<scalar_t>(0.0f);

  const auto read = [&](int64_t line, int64_t lead) {
    if (line >= lines || lead >= p.leads) return zero;
    const int64_t row = quotient(line, taps), tap = line - row * taps;
    const int64_t dh = quotient(tap, p.taps[2]), w_tap = tap - dh * p.taps[2];
    const int64_t d_tap = quotient(dh, p.taps[1]), h_tap = dh - d_tap * p.taps[1];
    return w[group * p.group_stride + row * p.row_stride + lead * p.lead_stride + d_tap * p.tap_strides[0] +
             h_tap * p.tap_strides[1] + w_tap * p.tap_strides[2]];
  };
  constexpr int kPitch = kPackTile + 1;
  for (int i = threadIdx.y; i < kPackTile; i += kPackLines) {
    if (p.reads_leads) {
      tile[threadIdx.x * kPitch + i] = read(line0 + i, lead0 + threadIdx.x);
    } else {
      tile[i * kPitch + threadIdx.x] = read(line0 + threadIdx.x, lead0 + i);
    }
  }
  __syncthreads();
  const int64_t lead = lead0 + threadIdx.x;
  for (int i = threadIdx.y; i < kPackTile; i += kPackLines) {
    const int64_t line = line0 + i;
    if (line >= lines) break;
    const scalar_t value = tile[threadIdx.x * kPitch + i];
    if (!p.flat) {
      if (lead < p.pitch) packed[(group * lines + line) * p.pitch + lead] = value;
      continue;
    }
    const int64_t row = quotient(line, taps), tap = line - row * taps;
    scalar_t* const to = packed + (group * p.rows + row) * p.pitch;
    if (lead < p.leads) to[tap * p.leads + lead] = value;
    const int64_t beyond = taps * p.leads + lead;  // the zeros at the end, by the last tap's threads
    if (tap == taps - 1 && beyond < p.pitch) to[beyond] = zero;
  }
}

template <typename scalar_t>
Status launch_filter_pack(const FilterPack& p, const void* w, void* packed, Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.rows * p.tap_count(), kPackTile)),
                  static_cast<unsigned>(ceil_div(p.flat ? p.leads : p.pitch, kPackTile)),
                  static_cast<unsigned>(p.groups));
  return launch("conv_filter_pack_kernel", conv_filter_pack_kernel<scalar_t>, grid, dim3(kPackTile, kPackLines),
                0, stream, p, static_cast<const scalar_t*>(w), static_cast<scalar_t*>(packed));
}

}  // namespace
}  // namespace fastnn::cuda
