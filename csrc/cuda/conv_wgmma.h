// Convolutions on Hopper's tensor cores: whether one is such (a function of the device, of shapes and strides,
// and of the pointers' alignment), and the same three things of each direction as the op itself has.
#pragma once

#include "../ops/conv.h"
#include "conv_variant.h"

namespace fastnn::cuda {

bool takes_wgmma(const ConvForwardParams& p);
bool takes_wgmma(const ConvGradInputParams& p);
bool takes_wgmma(const ConvGradWeightParams& p);

int64_t wgmma_workspace(const ConvForwardParams& p);
int64_t wgmma_workspace(const ConvGradInputParams& p);
int64_t wgmma_workspace(const ConvGradWeightParams& p);

// What p.variant stands for, of a convolution that is one.
ConvWay wgmma_way(const ConvForwardParams& p);
ConvWay wgmma_way(const ConvGradInputParams& p);
ConvWay wgmma_way(const ConvGradWeightParams& p);

Status launch_wgmma(const ConvForwardParams& p, Stream stream);
Status launch_wgmma(const ConvGradInputParams& p, Stream stream);
Status launch_wgmma(const ConvGradWeightParams& p, Stream stream);

}  // namespace fastnn::cuda
