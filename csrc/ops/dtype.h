// Element types that kernels take, and the types they accumulate in.
#pragma once

namespace fastnn {

// float64 accumulates in float64; the other three accumulate in float32.
enum class DType : int { kFloat64, kFloat32, kBFloat16, kFloat16 };

// Order of the dimensions in memory of an activation tensor.
//   kChannelsFirst  [N, C, spatial...], dense
//   kChannelsLast   [N, spatial..., C], dense
enum class Layout : int { kChannelsFirst, kChannelsLast };

}  // namespace fastnn
