// Convolutions on tensor cores by mma.sync: whether one is such (a function of shape, dtype and whether tf32 is
// allowed), and the same three things of each direction as the op itself has.
#pragma once

#include "../ops/conv.h"
#include "conv_variant.h"

namespace fastnn::cuda {

bool takes_mma(const ConvForwardParams& p);
bool takes_mma(const ConvGradInputParams& p);
bool takes_mma(const ConvGradWeightParams& p);

int64_t mma_workspace(const ConvForwardParams& p);
int64_t mma_workspace(const ConvGradInputParams& p);
int64_t mma_workspace(const ConvGradWeightParams& p);

// What p.variant stands for, of a convolution that is one.
ConvWay mma_way(const ConvForwardParams& p);
ConvWay mma_way(const ConvGradInputParams& p);
ConvWay mma_way(const ConvGradWeightParams& p);

Status launch_mma(const ConvForwardParams& p, Stream stream);
Status launch_mma(const ConvGradInputParams& p, Stream stream);
Status launch_mma(const ConvGradWeightParams& p, Stream stream);

}  // namespace fastnn::cuda
