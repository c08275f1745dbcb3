// What a choice of kernels may depend on besides a shape.
#pragma once

namespace fastnn::cuda {

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // that a block may have
  bool clusters;     // sm_90 and newer
};

}  // namespace fastnn::cuda
