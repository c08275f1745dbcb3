// What a choice of kernels may depend on besides a shape.
#pragma once

namespace fastnn::cuda {

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;        // that a block may have
  int compute_capability;  // 10 * major + minor

  bool clusters() const { return compute_capability >= 90; }
};

}  // namespace fastnn::cuda
