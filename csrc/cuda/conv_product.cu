// The pipelined products of conv_product.cuh: from the contract's parameters to launches.
#include "conv_filter_pack.cuh"
#include "conv_gemm_problem.cuh"
#include "conv_product.cuh"
#include "conv_product.h"
#include "conv_product_plan.cuh"
#include "conv_sum_splits.cuh"
#include "dispatch.cuh"

namespace fastnn::cuda {
namespace {

// The operands of one launch: A and B as the product has them.
struct Operands {
  const void* a;
  const void* b;
  const void* bias;
  void* out;
};

Operands operands_of(const ConvForwardParams& p) { return {p.w, p.x, p.bias, p.y}; }
Operands operands_of(const ConvGradInputParams& p) { return {p.w, p.grad_y, p.bias, p.grad_x}; }
Operands operands_of(const ConvGradWeightParams& p) { return {p.grad_y, p.x, nullptr, p.grad_w}; }

ConvGemm problem_of(const ConvForwardParams& p) { return forward_problem(p); }
ConvGemm problem_of(const ConvGradInputParams& p) { return grad_input_problem(p); }
ConvGemm problem_of(const ConvGradWeightParams& p) { return grad_weight_problem(p); }

// The dtypes that are multiplied here.
template <typename F>
Status dispatch_product(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(TypeTag<float>{});
    case DType::kBFloat16:
      return f(TypeTag<bfloat16_t>{});
    case DType::kFloat16:
      return f(TypeTag<float16_t>{});
    case DType::kFloat64:
      break;
  }
  return Status::error("not a dtype of the pipelined products", "conv_product");
}

template <typename Params>
bool takes(const Params& p) {
  return p.dtype != DType::kFloat64 && product_takes(problem_of(p));
}

// The workspace: the packed filters, then the splits' sums. The filters are counted whether they are packed or
// not, since that follows from pointers, which a query need not have.
template <typename scalar_t>
int64_t packed_bytes(const ProductConv& c) {
  return ceil_div(c.pack.most_elements(kVecSize<scalar_t>) * static_cast<int64_t>(sizeof(scalar_t)), 256) * 256;
}

template <typename Params>
int64_t workspace(const Params& p) {
  int64_t bytes = 0;
  dispatch_product(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const ProductConv c = product_conv<scalar_t>(p);
    bytes = packed_bytes<scalar_t>(c);
    if (c.plan.splits > 1) {
      bytes += c.plan.splits * c.problem.groups * c.problem.rows * c.problem.cols.size() *
               static_cast<int64_t>(sizeof(float));
    }
    return Status::success();
  });
  return bytes;
}

template <typename Params>
ConvWay way(const Params& p) {
  ConvWay result;
  dispatch_product(p.dtype, [&](auto tag) {
    const ProductConv c = product_conv<typename decltype(tag)::type>(p);
    result.ways = c.plan.ways;
    result.way = c.plan.way;
    // Of sums over the batch; otherwise chunks are added in one order, however many blocks share them.
    result.order = c.problem.sums_batch ? c.plan.split_steps : 0;
    std::snprintf(result.name, sizeof(result.name), "%s %s%s", c.plan.tensor_cores ? "mma" : "fma",
                  c.plan.large ? "large" : "small", c.plan.splits > 1 ? " split" : "");
    return Status::success();
  });
  return result;
}

template <typename Params>
Status run(const Params& p, Stream stream) {
  return dispatch_product(p.dtype, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const ProductConv c = product_conv<scalar_t>(p);
    Operands o = operands_of(p);
    auto* const workspace = static_cast<unsigned char*>(p.workspace);
    Status status;
    if (c.packs) {
      status = launch_filter_pack<scalar_t>(c.pack, o.a, workspace, stream);
      if (!status.ok()) return status;
      o.a = workspace;
    }
    auto* const partial =
        c.plan.splits > 1 ? reinterpret_cast<float*>(workspace + packed_bytes<scalar_t>(c)) : nullptr;
    const auto launch_tile = [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      return launch_product_loader<scalar_t, Tile>(c, o.a, o.b, o.bias, o.out, partial, stream);
    };
    if (c.plan.tensor_cores) {
      status = c.plan.large ? launch_tile(TypeTag<LargeMmaTile>{}) : launch_tile(TypeTag<SmallMmaTile>{});
    } else if constexpr (sizeof(scalar_t) == sizeof(float)) {
      status = c.plan.large ? launch_tile(TypeTag<LargeFmaTile>{}) : launch_tile(TypeTag<SmallFmaTile>{});
    }
    if (!status.ok() || partial == nullptr) return status;
    return launch_sum_splits<scalar_t>(c.problem, c.plan.splits, partial, o.bias, o.out, stream);
  });
}

}  // namespace

bool takes_product(const ConvForwardParams& p) { return takes(p); }
bool takes_product(const ConvGradInputParams& p) { return takes(p); }
bool takes_product(const ConvGradWeightParams& p) { return takes(p); }

int64_t product_workspace(const ConvForwardParams& p) { return workspace(p); }
int64_t product_workspace(const ConvGradInputParams& p) { return workspace(p); }
int64_t product_workspace(const ConvGradWeightParams& p) { return workspace(p); }

ConvWay product_way(const ConvForwardParams& p) { return way(p); }
ConvWay product_way(const ConvGradInputParams& p) { return way(p); }
ConvWay product_way(const ConvGradWeightParams& p) { return way(p); }

Status launch_product(const ConvForwardParams& p, Stream stream) { return run(p, stream); }
Status launch_product(const ConvGradInputParams& p, Stream stream) { return run(p, stream); }
Status launch_product(const ConvGradWeightParams& p, Stream stream) { return run(p, stream); }

}  // namespace fastnn::cuda
