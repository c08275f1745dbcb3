// Convolution of groups of few channels, forward and data gradient: 2 to 16 leads and results a group (leads
// are the channels that are summed over: x's forward, grad_y's backward).
//
//   result[n, f, o] = bias[f] + sum over leads l of f's group and taps r:
//                     source[n, l, o * stride + r * dilation - pad] * w[f, l, r]           and its transpose
//
// Why not on tensor cores by several groups in one tile, with zeros where filter and lead are of different
// groups: NaN and infinities of one group would reach the others as 0 * NaN. And a tile of one group is mostly
// empty: of 64 rows 4 would be there.
//
// A thread owns 4 results of a group (a vector) at 4 places of a column, 16 sums. Neighbouring threads have
// neighbouring vectors where channels are innermost, otherwise neighbouring columns. A step takes one tap of 4
// leads (1 of planes): 4 vectors of the source, 4 of weights from shared memory, 64 multiply-adds. The weights
// of a block's vectors are staged some taps at a time, [lead][tap][result], lines of results a vector apart so
// that consecutive threads, which have consecutive taps, write to other banks: eight of them, four times in a
// warp.
//
// What bounds it: multiply-adds on the CUDA cores. With 4 leads and 3x3 a result takes 36; with loads,
// conversions and addresses some 110 instructions for 64 of them, so 60 for a result: 2.1 ps of an H200
// (29.6e12 instructions of a lane a second) against 0.8 ps of memory in halves, 1.7 in float32: 0.4 and 0.8 of
// its speed. With 8 leads half of that, with 16 a quarter.
//
// Chosen by shape alone (takes_small_groups): up to 16 leads and results; up to 8 where tensor cores multiply,
// which with 16 rows in a tile of 64 are ahead. Not of float64, nor of coordinates beyond 32 bits.
//
// Padding is skipped, not multiplied. Error: one chain of leads * taps multiply-adds in acc_t, the leads of a
// tap innermost.
#pragma once

#include "conv_areas.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kGroupResults = 4;  // of a vector
constexpr int kGroupRows = kAnyResults;
// Weights in shared memory at a time: of 16 leads and 32 vectors three taps, of 4 twelve.
constexpr int kStagedWeights = 3 * (kMostLanes + 1) * kGroupResults * 16;
constexpr int64_t kMostOfGroup = 16, kMostOfGroupOnTensorCores = 8;

struct GroupConv {
  DepthwiseConv conv;  // channels: results of all groups; w_strides[0]: of results
  int leads, results;  // of a group
  int vectors_of_group;
  int64_t w_lead, w_group;
};

template <typename scalar_t, bool kTransposed, int kLeads>
__global__ void __launch_bounds__(kChannelsThreads, 3)
    conv_small_groups_kernel(GroupConv p, ChannelsPlan plan, AnyAxis rows, AnyAxis columns,
                             const scalar_t* __restrict__ source, const scalar_t* __restrict__ w,
                             const scalar_t* __restrict__ bias, scalar_t* __restrict__ result,
                             bool source_aligned, bool result_vectors, bool result_aligned) {
  using acc_t = acc_type<scalar_t>;
  using Weights = Vec<scalar_t, kGroupResults>;
  const DepthwiseConv& c = p.conv;
  FASTNN_SHARED(Weights, staged, kStagedWeights / kGroupResults);
  const ChannelsPlace place(plan);
  const int first_vector = place.vector - place.lane;
  const int group = place.vector / p.vectors_of_group;
  const int in_group = (place.vector - group * p.vectors_of_group) * kGroupResults;
  const int count = min(kGroupResults, p.results - in_group);
  const int vectors = static_cast<int>(c.channels / p.results) * p.vectors_of_group;
  const bool there = place.image >= 0 && place.image < c.images && place.vector < vectors &&
                     place.column_run < plan.column_runs && place.row_run < plan.row_runs;
  // The rows of a thread: below each other forward, `stride` apart transposed, where the same taps meet them.
  const int apart = kTransposed ? rows.stride : 1, source_apart = kTransposed ? 1 : rows.stride;
  const int block = place.row_run / apart, first = block * apart * kGroupRows + place.row_run - block * apart;
  if (there) source += place.image * c.source_strides[0] + int64_t{group} * p.leads * c.source_strides[1];

  acc_t sums[kGroupRows][kGroupResults] = {};
  const int taps = rows.kernel * columns.kernel, pitch = plan.lanes + 1, of_tap = p.leads * plan.lanes;
  const int at_once = min(taps, kStagedWeights / kGroupResults / (p.leads * pitch));
#pragma unroll 1
  for (int begin = 0; begin < taps; begin += at_once) {
    const int end = min(taps, begin + at_once), chunk = end - begin;
    if (begin > 0) __syncthreads();
    // Consecutive threads read consecutive taps, then leads, then results.
    for (int i = static_cast<int>(threadIdx.x); i < chunk * of_tap * kGroupResults; i += kChannelsThreads) {
      const int line = i / chunk, tap = begin + i - line * chunk;
      const int of = line / p.leads, lead = line - of * p.leads;
      const int lane = of / kGroupResults, k = of - lane * kGroupResults;
      const int vector = first_vector + lane, of_group = vector / p.vectors_of_group;
      const int row = (vector - of_group * p.vectors_of_group) * kGroupResults + k;
      const int tap_row = tap / columns.kernel;
      // What is read as a vector is written whole.
      staged[(lead * chunk + tap - begin) * pitch + lane].v[k] =
          vector < vectors && row < p.results
              ? w[c.w_begin + of_group * p.w_group + row * c.w_strides[0] + lead * p.w_lead +
                  tap_row * c.w_strides[1] + (tap - tap_row * columns.kernel) * c.w_strides[2]]
              : from_acc<scalar_t>(acc_t(0));
    }
    __syncthreads();
    if (!there) continue;
    int tap_row = begin / columns.kernel, tap_column = begin - tap_row * columns.kernel;
#pragma unroll 1
    for (int tap = begin; tap < end; ++tap) {
      const int row = rows.template source<kTransposed>(first, tap_row);
      const int column = columns.template source<kTransposed>(place.column_run, tap_column);
      if (row != std::numeric_limits<int>::min() && in_range(column, columns.sources)) {
        const scalar_t* const at = source + row * c.source_strides[2] + column * c.source_strides[3];
        const Weights* weights = staged + (tap - begin) * pitch + place.lane;
#pragma unroll 1
        for (int lead = 0; lead < p.leads; lead += kLeads) {
          acc_t weight[kLeads][kGroupResults];
#pragma unroll
          for (int l = 0; l < kLeads; ++l, weights += chunk * pitch) {
            read_vec<kGroupResults>(weights->v, true, weight[l]);
          }
#pragma unroll
          for (int i = 0; i < kGroupRows; ++i) {
            if (!in_range(row + i * source_apart, rows.sources)) continue;
            acc_t values[kLeads];
            read_vec<kLeads>(at + i * source_apart * c.source_strides[2] + lead * c.source_strides[1],
                             source_aligned, values);
#pragma unroll
            for (int l = 0; l < kLeads; ++l) {
#pragma unroll
              for (int k = 0; k < kGroupResults; ++k) sums[i][k] += values[l] * weight[l][k];
            }
          }
        }
      }
      if (++tap_column == columns.kernel) {
        tap_column = 0;
        ++tap_row;
      }
    }
  }
  if (!there) return;
  const int channel = group * p.results + in_group;
  result += place.image * c.result_strides[0] + channel * c.result_strides[1] +
            place.column_run * c.result_strides[3];
#pragma unroll
  for (int i = 0; i < kGroupRows; ++i) {
    const int row = first + i * apart;
    if (row >= rows.results) break;
    scalar_t* const out = result + row * c.result_strides[2];
    if (bias != nullptr) {
#pragma unroll
      for (int k = 0; k < kGroupResults; ++k) {
        if (k < count) sums[i][k] += to_acc(bias[channel + k]);
      }
    }
    if (result_vectors) {
      write_activated<kGroupResults>(out, result_aligned, c.activation, sums[i]);
    } else {
#pragma unroll
      for (int k = 0; k < kGroupResults; ++k) {
        if (k < count) out[k * c.result_strides[1]] = activated(c.activation, from_acc<scalar_t>(sums[i][k]));
      }
    }
  }
}

// ---- launchers ----------------------------------------------------------------------------------------------

inline bool takes_small_groups(const ConvGeometry& g, DType dtype, bool tensor_cores) {
  const int64_t most = tensor_cores ? kMostOfGroupOnTensorCores : kMostOfGroup;
  const int64_t leads = g.C / g.groups, results = g.K / g.groups;
  return dtype != DType::kFloat64 && g.groups > 1 && leads > 1 && leads <= most && results <= most &&
         is_planar_convolution(g);
}

// `c` as depthwise_conv makes it.
inline GroupConv group_conv(const ConvGeometry& g, DepthwiseConv c, const ConvStrides& w, bool grad_input) {
  GroupConv p{};
  p.leads = static_cast<int>((grad_input ? g.K : g.C) / g.groups);
  p.results = static_cast<int>((grad_input ? g.C : g.K) / g.groups);
  p.vectors_of_group = static_cast<int>(ceil_div(p.results, kGroupResults));
  c.channels = static_cast<int>(grad_input ? g.C : g.K);
  c.w_strides[0] = grad_input ? w[1] : w[0];
  p.w_lead = grad_input ? w[0] : w[1];
  p.w_group = g.K / g.groups * w[0];
  p.conv = c;
  return p;
}

template <typename scalar_t, bool kTransposed, int kLeads>
Status launch_groups(const GroupConv& p, bool innermost, const DepthwiseOperands& o, Stream stream) {
  constexpr const char* kName = "conv_small_groups_kernel";
  const DepthwiseConv& c = p.conv;
  const AnyAxis rows(c, 0), columns(c, 1);
  const int64_t spread = kTransposed ? c.stride[0] : 1;
  const int64_t row_runs = ceil_div(c.results[0], spread * kGroupRows) * spread;
  const int vectors = c.channels / p.results * p.vectors_of_group;
  const ChannelsPlan plan = plan_channels(c.images, vectors, columns.results, static_cast<int>(row_runs),
                                          kGroupRows, 1, 1, innermost ? kMostLanes : 1);
  const bool result_vectors = c.result_strides[1] == 1 && p.results % kGroupResults == 0;
  dim3 grid;
  const Status status = grid_of(plan.blocks, kName, grid);
  if (!status.ok()) return status;
  return launch(kName, conv_small_groups_kernel<scalar_t, kTransposed, kLeads>, grid, dim3(kChannelsThreads), 0,
                stream, p, plan, rows, columns, static_cast<const scalar_t*>(o.source),
                static_cast<const scalar_t*>(o.w), static_cast<const scalar_t*>(o.bias),
                static_cast<scalar_t*>(o.result), vectors_aligned<scalar_t, kLeads>(o.source, c.source_strides),
                result_vectors, vectors_aligned<scalar_t, kGroupResults>(o.result, c.result_strides));
}

template <typename scalar_t>
Status launch_small_groups(const GroupConv& p, const DepthwiseOperands& o, Stream stream) {
  const DepthwiseConv& c = p.conv;
  const bool innermost = c.source_strides[1] == 1 && c.result_strides[1] == 1;
  const bool vectors = innermost && p.leads % 4 == 0;
  if (c.transposed) {
    return vectors ? launch_groups<scalar_t, true, 4>(p, innermost, o, stream)
                   : launch_groups<scalar_t, true, 1>(p, innermost, o, stream);
  }
  return vectors ? launch_groups<scalar_t, false, 4>(p, innermost, o, stream)
                 : launch_groups<scalar_t, false, 1>(p, innermost, o, stream);
}

}  // namespace
}  // namespace fastnn::cuda
