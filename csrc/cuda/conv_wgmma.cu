// Convolutions on Hopper's tensor cores (conv_wgmma.cuh): from the contract's parameters to launches.
#include "conv_filter_pack.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_sum_splits.cuh"
#include "conv_wgmma.cuh"
#include "conv_wgmma.h"
#include "conv_wgmma_plan.cuh"
#include "conv_wgmma_sum.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// A and B as the product has them.
struct WgmmaOperands {
  const void* a;
  const void* b;
  const void* bias;
  void* out;
};

WgmmaOperands wgmma_operands(const ConvForwardParams& p) { return {p.w, p.x, p.bias, p.y}; }
WgmmaOperands wgmma_operands(const ConvGradInputParams& p) { return {p.w, p.grad_y, p.bias, p.grad_x}; }
WgmmaOperands wgmma_operands(const ConvGradWeightParams& p) { return {p.grad_y, p.x, nullptr, p.grad_w}; }

// Calls f(TypeTag<scalar_t>{}, c) with the plan of a convolution that this device and this file can do;
// `otherwise` is returned for all others.
template <typename Params, typename Result, typename F>
Result with_plan(const Params& p, Result otherwise, F&& f) {
  if (device_limits().compute_capability / 10 != 9) return otherwise;
  WgmmaConv c;
  const auto run = [&](auto tag) {
    return plan_wgmma<typename decltype(tag)::type>(c, p) ? f(tag, c) : otherwise;
  };
  switch (p.dtype) {
    case DType::kFloat32:
      if constexpr (!std::is_same_v<Params, ConvGradWeightParams>) {  // tf32 has no operands across k
        if (p.allow_tf32) return run(TypeTag<float>{});
      }
      break;
    case DType::kBFloat16:
      return run(TypeTag<bfloat16_t>{});
    case DType::kFloat16:
      return run(TypeTag<float16_t>{});
    case DType::kFloat64:
      break;
  }
  return otherwise;
}

// The workspace: the packed filters, where they do not lie as needed, then the splits' sums.
template <typename scalar_t>
int64_t packed_bytes(const WgmmaConv& c) {
  if (!c.packs) return 0;
  const int64_t bytes = c.pack.most_elements(kVecSize<scalar_t>) * static_cast<int64_t>(sizeof(scalar_t));
  return ceil_div(bytes, 256) * 256;
}

int64_t partial_bytes(const WgmmaConv& c) {
  const ConvGemm& p = c.gemm;
  return partial_slots(c) * p.groups * p.rows * p.cols.size() * static_cast<int64_t>(sizeof(float));
}

template <typename Params>
bool takes(const Params& p) {
  return with_plan(p, false, [](auto, const WgmmaConv&) { return true; });
}

template <typename Params>
int64_t workspace(const Params& p) {
  return with_plan(p, int64_t{0}, [](auto tag, const WgmmaConv& c) {
    return packed_bytes<typename decltype(tag)::type>(c) + partial_bytes(c);
  });
}

constexpr const char* tile_name(WgmmaTiles tiles) {
  switch (tiles) {
    case WgmmaTiles::kWide:
      return "wide";
    case WgmmaTiles::kTall:
      return "tall";
    case WgmmaTiles::kSquare:
      return "square";
    case WgmmaTiles::kFewRows:
      return "few rows";
    case WgmmaTiles::kTurns:
      return "turns";
  }
  return "";
}

template <typename Params>
ConvWay way(const Params& p) {
  return with_plan(p, ConvWay{}, [](auto, const WgmmaConv& c) {
    ConvWay result;
    result.ways = c.ways;
    result.way = c.way;
    result.cycles = c.cycles;
    // Chunks of taps are added in one order, however many blocks share them.
    const bool runs = c.reduction == WgmmaReduction::kPositions;
    result.order = runs ? int64_t{c.problem.split_steps} << 8 | static_cast<int64_t>(c.tiles) : 0;
    std::snprintf(result.name, sizeof(result.name), "wgmma %s, %u %s", tile_name(c.tiles),
                  runs ? c.problem.runs : c.problem.splits, runs ? "runs" : "splits");
    return result;
  });
}

template <typename Params>
Status run(const Params& p, Stream stream) {
  const Status refused = Status::error("no convolution for Hopper's tensor cores", "conv_wgmma_kernel");
  return with_plan(p, refused, [&](auto tag, const WgmmaConv& c) {
    using scalar_t = typename decltype(tag)::type;
    WgmmaOperands o = wgmma_operands(p);
    auto* const workspace = static_cast<unsigned char*>(p.workspace);
    Status status;
    if (c.packs) {
      status = launch_filter_pack<scalar_t>(c.pack, o.a, workspace, stream);
      if (!status.ok()) return status;
      o.a = workspace;
    }
    auto* const partial = reinterpret_cast<float*>(workspace + packed_bytes<scalar_t>(c));
    const auto multiply = [&]<WgmmaReduction kReduction>(std::integral_constant<WgmmaReduction, kReduction>) {
      return dispatch_wgmma_tile<kReduction>(c.tiles, [&]<typename Tile>(TypeTag<Tile>) {
        return launch_wgmma_tile<scalar_t, Tile, kReduction>(c, o.a, o.b, o.bias, o.out, partial, stream);
      });
    };
    if constexpr (std::is_same_v<Params, ConvGradWeightParams>) {
      constexpr WgmmaReduction kPositions = WgmmaReduction::kPositions;
      status = multiply(std::integral_constant<WgmmaReduction, kPositions>{});
      if (!status.ok()) return status;
      return dispatch_wgmma_tile<kPositions>(c.tiles, [&]<typename Tile>(TypeTag<Tile>) {
        return launch_wgmma_sum<scalar_t>(c.gemm, c.problem, Tile::kM, Tile::kN, Tile::kTurn, partial, o.out,
                                          stream);
      });
    } else {
      if constexpr (std::is_same_v<Params, ConvGradInputParams> && sizeof(scalar_t) == 2) {
        constexpr WgmmaReduction kAcross = WgmmaReduction::kTapsAcrossRows;
        status = c.reduction == kAcross
                     ? multiply(std::integral_constant<WgmmaReduction, kAcross>{})
                     : multiply(std::integral_constant<WgmmaReduction, WgmmaReduction::kTaps>{});
      } else {
        status = multiply(std::integral_constant<WgmmaReduction, WgmmaReduction::kTaps>{});
      }
      if (!status.ok() || !c.problem.out_is_partial) return status;
      return launch_sum_splits<scalar_t>(c.gemm, c.problem.splits, partial, o.bias, o.out, stream);
    }
  });
}

}  // namespace

bool takes_wgmma(const ConvForwardParams& p) { return takes(p); }
bool takes_wgmma(const ConvGradInputParams& p) { return takes(p); }
bool takes_wgmma(const ConvGradWeightParams& p) { return takes(p); }

int64_t wgmma_workspace(const ConvForwardParams& p) { return workspace(p); }
int64_t wgmma_workspace(const ConvGradInputParams& p) { return workspace(p); }
int64_t wgmma_workspace(const ConvGradWeightParams& p) { return workspace(p); }

ConvWay wgmma_way(const ConvForwardParams& p) { return way(p); }
ConvWay wgmma_way(const ConvGradInputParams& p) { return way(p); }
ConvWay wgmma_way(const ConvGradWeightParams& p) { return way(p); }

Status launch_wgmma(const ConvForwardParams& p, Stream stream) { return run(p, stream); }
Status launch_wgmma(const ConvGradInputParams& p, Stream stream) { return run(p, stream); }
Status launch_wgmma(const ConvGradWeightParams& p, Stream stream) { return run(p, stream); }

}  // namespace fastnn::cuda
