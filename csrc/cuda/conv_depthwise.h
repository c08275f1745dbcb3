// Depthwise convolutions (C == groups, few filters a channel): whether one is such, and the same things of each
// direction as the op itself has.
#pragma once

#include "../ops/conv.h"

namespace fastnn::cuda {

bool is_depthwise(const ConvGeometry& geometry);

int64_t depthwise_workspace(const ConvGradWeightParams& p);

Status launch_depthwise(const ConvForwardParams& p, Stream stream);
Status launch_depthwise(const ConvGradInputParams& p, Stream stream);
Status launch_depthwise(const ConvGradWeightParams& p, Stream stream);

}  // namespace fastnn::cuda
