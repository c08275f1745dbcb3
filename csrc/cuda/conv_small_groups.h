// Convolutions of groups of few channels on CUDA cores: whether forward or the data gradient is such (a
// function of shape, dtype and whether tf32 is allowed), and its launch. They want no workspace.
#pragma once

#include "../ops/conv.h"

namespace fastnn::cuda {

bool takes_small_groups(const ConvForwardParams& p);
bool takes_small_groups(const ConvGradInputParams& p);

Status launch_small_groups(const ConvForwardParams& p, Stream stream);
Status launch_small_groups(const ConvGradInputParams& p, Stream stream);

}  // namespace fastnn::cuda
